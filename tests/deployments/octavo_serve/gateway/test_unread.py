"""What waits for clients that do not read: counted, bounded, and the largest goes first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo.request import Logprob, PackedLogprobs, SequenceUpdate
from octavo_serve.gateway.unread import Unread


class Request:
    def __init__(self) -> None:
        self.ended = False

    def give_up(self) -> None:
        self.ended = True


def test_the_request_for_which_the_most_waits_is_ended() -> None:
    unread, quick, slow, slowest = Unread(limit=10_000), Request(), Request(), Request()
    unread.add(slow, [SequenceUpdate("slow", 0, [1])])
    for _ in range(100):
        unread.add(quick, [SequenceUpdate("quick", 0, [1])])
        unread.taken(quick)
    assert not quick.ended
    while not slowest.ended:
        unread.add(slowest, [SequenceUpdate("slowest", 0, [1])])
    assert not slow.ended
    unread.taken(slow)
    unread.taken(slow)
    assert unread.bytes == 0


def test_log_probabilities_count() -> None:
    plain, rich, prompt = Unread(), Unread(), Unread()
    plain.add(Request(), [SequenceUpdate("a", 0, [1])])
    rich.add(Request(), [SequenceUpdate("a", 0, [1], [{token: Logprob(-1.0, 1) for token in range(21)}])])
    packed = PackedLogprobs()
    packed.add(range(21), [-1.0] * 21, 1)
    prompt.add(Request(), [SequenceUpdate("a", 0, [1], prompt_logprobs=packed)])
    assert rich.bytes > 5 * plain.bytes
    assert prompt.bytes == plain.bytes + 21 * 8


def test_a_client_that_does_not_read_loses_its_request_before_others_lose_anything(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        fleet.unread._limit = 50_000
        await fleet.add()
        asked = fleet.request("does not read", n=2, max_tokens=1000)
        async with fleet.reading(client, asked) as stream:
            await anext(stream)
            reader = asyncio.create_task(fleet.said(client, fleet.request("reads", max_tokens=200)))
            while any(run.stream.error is None for run in client._runs.values() if run.request.request_id != "reads"):
                await asyncio.sleep(0.01)
            assert fleet.unread.bytes == 0
            with pytest.raises(OctavoError, match="did not read"):
                async for _ in stream:
                    pass
            assert len((await reader)[0]) == 200

    assert fleet.run(scenario) == []
