"""Where events and answers are written: on the event loop, and in a thread what is large."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from octavo.request import Request, SamplingParams
from octavo_serve.api.jobs import MANY, MANY_CHOICES, Job
from octavo_serve.api.pieces import Element, Ended, Piece, Whole
from octavo_serve.api.surface import Writer
from octavo_serve.api.threads import Threads
from octavo_serve.api.writing import write, write_answer


class Where(Writer[dict[str, Any], dict[str, Any]]):
    """Says in which thread it was called; long pieces are large."""

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        return [{"text": piece.text, "on": threading.current_thread()}]

    def end(self) -> list[dict[str, Any]]:
        return [{"text": "end", "on": threading.current_thread()}]

    def is_large(self, element: Element) -> bool:
        return isinstance(element, Piece) and len(element.text) > 3

    def whole(self, whole: Whole) -> dict[str, Any]:
        return {"text": "whole", "on": threading.current_thread()}


def writer_of(prompts: int = 1, **params: Any) -> Where:
    anything: Any = None
    sampling = SamplingParams(**params)
    requests = [Request(request_id=f"r-{i}", prompt_token_ids=[1], params=sampling) for i in range(prompts)]
    return Where(Job("r", 0, anything, "m", sampling, requests, [], None, anything), tells=True)


def small(event: dict[str, Any]) -> tuple[str, bool, str]:
    return event["text"], event["on"] is threading.main_thread(), "small"


def large(event: dict[str, Any]) -> tuple[str, bool, str]:
    return event["text"], event["on"] is threading.main_thread(), "large"


def test_large_pieces_are_written_in_a_thread_and_keep_their_place() -> None:
    elements = [Piece(0, "a", [1]), Piece(0, "a long one", [2]), Piece(0, "b", [3]), Ended()]
    assert asyncio.run(write(writer_of(), elements, Threads(), small, large)) == [
        ("a", True, "small"),
        ("a long one", False, "large"),
        ("b", True, "small"),
        ("end", True, "small"),
    ]


@pytest.mark.parametrize(
    ("prompts", "params", "tokens", "is_large"),
    [
        (1, {}, 10**6, False),
        (MANY_CHOICES, {}, 1, False),
        (MANY_CHOICES // 2, {"n": 2}, 1, False),
        (MANY_CHOICES // 2 + 1, {"n": 2}, 1, True),
        (1, {"logprobs": 0}, MANY + 1, True),
    ],
)
def test_an_answer_of_many_choices_or_log_probabilities_is_large(
    prompts: int, params: dict[str, Any], tokens: int, is_large: bool
) -> None:
    whole = Whole()
    whole.add([Piece(0, "a", [1] * tokens)])
    written = asyncio.run(write_answer(writer_of(prompts, **params), whole, Threads(), small, large))
    assert written == ("whole", not is_large, "large" if is_large else "small")
