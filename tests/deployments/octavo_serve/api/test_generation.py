"""A job as it runs: pieces as they come, stop strings, errors, leaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from octavo.errors import BadRequest, EngineDead, OctavoError
from octavo.request import FinishReason, Placement, Request, SequenceUpdate
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.generation import run
from octavo_serve.api.jobs import Asked
from octavo_serve.api.pieces import Begun, Element, Ended, Piece, Stage
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS

PLACED = Placement("ticket", "shard1", "prefix", cached_tokens=48, first_token=0.1)
HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


async def run_all(service: Service, prompt: Any = "Hello", **extra: Any) -> list[list[Element]]:
    """What a completion's job says."""
    job = await service.job(COMPLETIONS.ask(parse(CompletionRequest, {"prompt": prompt} | extra), Limits()))
    async with aclosing(run(job)) as stream:
        return [elements async for elements in stream]


def kinds(elements: list[Element]) -> list[type[Element]]:
    return [type(element) for element in elements]


def test_a_job_says_where_it_runs_then_its_pieces_then_that_it_has_ended(service: Service, client: Any) -> None:
    client.texts, client.placed, client.cached_tokens = ["One two three."], PLACED, 32
    first, *more, last = asyncio.run(run_all(service, prompt_logprobs=0))
    (begun, piece) = first
    assert isinstance(begun, Begun)
    assert (begun.prompt, begun.placement, begun.cached_tokens) == (0, PLACED, 32)
    assert begun.prompt_logprobs is not None
    assert len(begun.prompt_logprobs) == len(client.opened[0].prompt_token_ids)
    assert isinstance(piece, Piece)
    assert [kinds(elements) for elements in more] == [[Piece]] * len(more)
    assert kinds(last) == [Piece, Ended]
    assert client.closed == [client.opened[0].request_id]


@pytest.mark.parametrize("leaves", [True, False])
def test_who_leaves_is_counted(service: Service, client: Any, leaves: bool) -> None:
    async def some() -> None:
        job = await service.job(COMPLETIONS.ask(parse(CompletionRequest, {"prompt": "Hello"}), Limits()))
        async with aclosing(run(job)) as stream:
            async for _ in stream:
                if leaves:
                    break

    client.texts = ["One two three."]
    asyncio.run(some())
    tally = service.telemetry.tallies["tiny", "text_completion"]
    assert dict(tally.finished) == ({"abort": 1} if leaves else {"stop": 1})
    assert tally.duration.cumulative(()) == [0 if leaves else 1]


@pytest.mark.parametrize(("reason", "error"), [("error", OctavoError), ("refused", BadRequest)])
def test_a_sequence_that_fails_fails_its_job_and_is_counted(
    service: Service, client: Any, reason: FinishReason, error: type[Exception]
) -> None:
    async def fails(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        yield [SequenceUpdate(request.request_id, 0, [], finish_reason=reason, stop_reason="because")]

    client.generate = fails
    with pytest.raises(error, match="because"):
        asyncio.run(run_all(service))
    assert dict(service.telemetry.tallies["tiny", "text_completion"].finished) == {reason: 1}


def test_each_prompt_begins_before_its_first_piece_and_all_end_together(service: Service, client: Any) -> None:
    client.texts = ["One.", "Two, three."]
    said = [element for elements in asyncio.run(run_all(service, ["a", "b", "c"], n=2)) for element in elements]
    assert [element.prompt for element in said if isinstance(element, Begun)] == [0, 1, 2]
    for prompt in range(3):
        began = next(i for i, e in enumerate(said) if isinstance(e, Begun) and e.prompt == prompt)
        assert began < min(i for i, e in enumerate(said) if isinstance(e, Piece) and e.choice // 2 == prompt)
    assert [i for i, element in enumerate(said) if isinstance(element, Ended)] == [len(said) - 1]
    ended = [e.choice for e in said if isinstance(e, Piece) and e.finish_reason]
    assert sorted(ended) == list(range(6))


def test_what_came_together_is_one_piece_of_each_choice(service: Service, client: Any) -> None:
    async def one_list(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        def update(index: int, token: int, reason: FinishReason | None = None) -> SequenceUpdate:
            return SequenceUpdate(request.request_id, index, [token], finish_reason=reason)

        yield [update(1, 70), update(0, 71), update(1, 72), update(0, 73, "length"), update(1, 74, "length")]

    client.generate = one_list
    (found,) = asyncio.run(run_all(service, n=2))
    pieces = [(e.choice, e.token_ids, e.finish_reason) for e in found if isinstance(e, Piece)]
    assert pieces == [(1, [70, 72, 74], "length"), (0, [71, 73], "length")]


def test_forced_tokens_are_told_apart_where_a_job_wants_that(service: Service, client: Any) -> None:
    async def some_forced(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        def update(index: int, ids: list[int], forced: int, reason: FinishReason | None = None) -> SequenceUpdate:
            return SequenceUpdate(request.request_id, index, ids, finish_reason=reason, num_forced=forced)

        yield [update(0, [70], 1), update(0, [71, 72, 73], 2), update(1, [80], 0), update(0, [74], 0)]
        yield [update(1, [81], 0, "stop"), update(0, [75, 76], 1, "stop")]

    async def pieces(tells: bool) -> list[tuple[int, list[int], int, str | None]]:
        body = parse(ChatRequest, HELLO | {"n": 2, "return_token_origins": tells})
        job = await service.job(CHAT.ask(body, Limits()))
        async with aclosing(run(job)) as stream:
            said = [element async for elements in stream for element in elements]
        return [(e.choice, e.token_ids, e.forced_tokens, e.finish_reason) for e in said if isinstance(e, Piece)]

    client.generate = some_forced
    assert [piece for piece in asyncio.run(pieces(True)) if piece[0] == 0] == [
        (0, [70], 1, None),
        (0, [71], 0, None),
        (0, [72, 73], 2, None),
        (0, [74], 0, None),
        (0, [75], 0, None),
        (0, [76], 1, "stop"),
    ]
    assert asyncio.run(pieces(False)) == [
        (0, [70, 71, 72, 73, 74], 0, None),
        (1, [80], 0, None),
        (1, [81], 0, "stop"),
        (0, [75, 76], 0, "stop"),
    ]


def test_a_stage_stands_between_the_pieces_and_who_writes_them(service: Service, client: Any) -> None:
    def in_pairs() -> Stage:
        """Keeps every other piece of a choice back until the next."""
        kept: list[Piece] = []

        def stage(piece: Piece) -> list[Piece]:
            if not kept and piece.finish_reason is None:
                kept.append(piece)
                return []
            before = [kept.pop()] if kept else []
            text = "".join(part.text for part in (*before, piece)).upper()
            return [replace(piece, text=text, token_ids=[t for part in (*before, piece) for t in part.token_ids])]

        return stage

    def ask(body: CompletionRequest, limits: Limits) -> Asked:
        asked = COMPLETIONS.ask(body, limits)
        asked.stage = in_pairs
        return asked

    async def events(surface: Surface[Any, Any, Any], body: CompletionRequest) -> list[Any]:
        async with aclosing(service.events(surface, body)) as stream:
            return [event async for event in stream]

    client.texts = ["one two three four five", "six seven eight nine"]
    surface, body = replace(COMPLETIONS, ask=ask), parse(CompletionRequest, {"prompt": "Hello", "n": 2})
    answer = asyncio.run(service.answer(surface, body))
    assert [choice["text"] for choice in answer["choices"]] == [text.upper() for text in client.texts]
    assert answer["usage"] == asyncio.run(service.answer(COMPLETIONS, body))["usage"]
    staged, plain = asyncio.run(events(surface, body)), asyncio.run(events(COMPLETIONS, body))
    assert len(staged) < len(plain)
    texts = ["".join(e["choices"][0]["text"] for e in staged if e["choices"][0]["index"] == i) for i in range(2)]
    assert texts == [text.upper() for text in client.texts]


def test_a_stop_string_that_ends_one_of_several_prompts_ends_its_request_at_once(service: Service, client: Any) -> None:
    async def generate(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        """The first prompt's stream never ends by itself; the second's does once the first has been left."""
        client.opened.append(request)
        first = request.request_id.endswith("-0")
        try:
            yield [SequenceUpdate(request.request_id, 0, client.tokenizer.encode("a.") if first else [70])]
            await (asyncio.Event().wait() if first else left.wait())
            yield [SequenceUpdate(request.request_id, 0, [70], finish_reason="length")]
        finally:
            client.closed.append(request.request_id)
            left.set()

    client.generate, left = generate, asyncio.Event()
    found = asyncio.run(asyncio.wait_for(run_all(service, ["a", "b"], stop=".", max_tokens=9), 60))
    ended = [e for part in found for e in part if isinstance(e, Piece) and e.finish_reason]
    assert [(e.choice, e.finish_reason, e.stop_reason) for e in ended] == [(0, "stop", "."), (1, "length", None)]
    assert sorted(client.closed) == sorted(request.request_id for request in client.opened)


def test_a_stream_that_ends_before_its_request_is_an_error(service: Service, client: Any) -> None:
    async def short(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        yield [SequenceUpdate(request.request_id, 0, [70])]

    client.generate = short
    for prompt in ("Hello", ["Hello", "Bye"]):
        with pytest.raises(EngineDead, match="ended before the request"):
            asyncio.run(run_all(service, prompt))


@pytest.mark.parametrize(("reason", "error"), [("error", OctavoError), ("refused", BadRequest)])
def test_who_is_to_blame_for_a_sequence_that_cannot_go_on(
    service: Service, client: Any, reason: Any, error: Any
) -> None:
    async def broken(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        yield [SequenceUpdate(request.request_id, 0, [70], finish_reason=reason, stop_reason="it cannot")]

    client.generate = broken
    with pytest.raises(OctavoError, match="it cannot") as raised:
        asyncio.run(run_all(service, "Hello"))
    assert type(raised.value) is error


def test_a_stop_string_ends_a_request(talk: Any, client: Any) -> None:
    client.texts = ["Paris is the capital of France."]
    answer = talk.chat(stop=[" capital"])
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == (
        "Paris is the",
        "stop",
        " capital",
    )
    assert client.closed == [client.opened[0].request_id]
    assert client.aborted == []


def test_a_stop_string_ends_one_of_several_sequences(talk: Any, client: Any) -> None:
    client.texts = ["Paris is the capital of France.", "Lyon is not the largest city of the country."]
    answer = talk.chat(stop=[" capital"], n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Paris is the", client.texts[1]]
    assert client.aborted == [(client.opened[0].request_id, 0)]


def test_leaving_a_stream_closes_the_request(service: Service, client: Any) -> None:
    async def leave() -> None:
        async with aclosing(service.events(COMPLETIONS, parse(CompletionRequest, {"prompt": ["a", "b"]}))) as stream:
            await anext(stream)

    client.texts = ["a rather long text of many tokens"]
    asyncio.run(leave())
    assert sorted(client.closed) == sorted(request.request_id for request in client.opened)


def test_errors_before_and_after_the_first_token(talk: Any, client: Any) -> None:
    client.error = BadRequest("no", "prompt")
    with pytest.raises(BadRequest, match="no"):
        talk.chat_events()
    client.error, client.late_error, client.fail_after = None, OctavoError("lost"), 1
    with pytest.raises(OctavoError, match="lost"):
        talk.chat()


def test_an_error_that_came_while_the_consumer_was_busy_is_not_lost(service: Service, client: Any) -> None:
    async def read_slowly() -> None:
        async with aclosing(service.events(CHAT, parse(ChatRequest, HELLO | {"stream": True}))) as stream:
            async for _ in stream:
                await asyncio.sleep(0.02)

    client.texts, client.late_error, client.fail_after = ["one two three four"], OctavoError("lost"), 3
    with pytest.raises(OctavoError, match="lost"):
        asyncio.run(asyncio.wait_for(read_slowly(), 5))
