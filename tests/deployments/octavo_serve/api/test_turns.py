"""What one request makes, however much it is at once, is made in slices: others have their turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from octavo.request import Logprob, Request, SequenceUpdate
from octavo_serve.api.body import parse
from octavo_serve.api.service import Service
from octavo_serve.api.turns import Turns
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS

STEPS = 500


@pytest.mark.parametrize("asked", [{}, {"logprobs": 20}])
def test_a_stream_that_was_not_read_for_long_is_caught_up_with_in_turns(
    service: Service, client: Any, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    pauses = 0
    others = Turns.pause

    async def counted(turns: Turns) -> None:
        nonlocal pauses
        pauses += 1
        await others(turns)

    async def at_once(request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        entries = None if request.params.logprobs is None else [{70 + i: Logprob(-1.0 - i, i + 1) for i in range(20)}]
        yield [
            SequenceUpdate(request.request_id, i, [70], entries, finish_reason="length" if step == STEPS - 1 else None)
            for step in range(STEPS)
            for i in range(4)
        ]

    async def run() -> list[Any]:
        body = parse(CompletionRequest, {"prompt": "Hello", "stream": True, "n": 4, "max_tokens": 200} | asked)
        async with aclosing(service.events(COMPLETIONS, body)) as stream:
            first = await anext(stream)
            return [first, *[chunk async for chunk in stream]]

    monkeypatch.setattr(Turns, "pause", counted)
    monkeypatch.setattr("octavo_serve.api.turns.SLICE", 0.0)
    client.generate = at_once
    chunks = asyncio.run(run())
    assert sum(len(choice["text"]) for chunk in chunks for choice in chunk["choices"]) == 4 * STEPS
    assert pauses > 4 * STEPS  # between any two updates
