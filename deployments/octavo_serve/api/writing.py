"""Runs writers without blocking the event loop: large events and answers are written in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from octavo_serve.api.jobs import MANY_CHOICES
from octavo_serve.api.pieces import Element, Whole
from octavo_serve.api.surface import A, E, Writer
from octavo_serve.api.threads import Threads

T = TypeVar("T")


async def write(
    writer: Writer[A, E],
    elements: Iterable[Element],
    threads: Threads,
    put: Callable[[E], T],
    put_large: Callable[[E], T],
) -> list[T]:
    """The events of a stream's next elements, each `put` into its final form.

    Args:
        put_large: the same for events that are large; it is called in a thread.
    """
    written: list[T] = []
    for element in elements:
        if writer.is_large(element):
            written += await threads.finish(_put, writer, element, put_large)
        else:
            written += [put(event) for event in writer.events(element)]
    return written


def _put(writer: Writer[A, E], element: Element, put: Callable[[E], T]) -> list[T]:
    return [put(event) for event in writer.events(element)]


async def write_answer(
    writer: Writer[A, E], whole: Whole, threads: Threads, put: Callable[[A], T], put_large: Callable[[A], T]
) -> T:
    """The whole answer; arguments as for `write`."""
    job = writer.job
    choices = len(job.requests) * job.params.num_sequences
    if choices > MANY_CHOICES or job.is_large(job.prompt_tokens, whole.tokens):
        return await threads.finish(_put_answer, writer, whole, put_large)
    return put(writer.answer(whole))


def _put_answer(writer: Writer[A, E], whole: Whole, put: Callable[[A], T]) -> T:
    return put(writer.answer(whole))
