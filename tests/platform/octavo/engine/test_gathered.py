"""Updates of requests that nobody waits for, told together."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from octavo.engine.async_engine import AsyncEngine
from octavo.engine.gathered import HELD_SECONDS, HELD_TOKENS, Gathered, is_gathered
from octavo.errors import EngineDead
from octavo.request import BELOW_ALL, SequenceUpdate


def update(index: int, *tokens: int, **more: Any) -> SequenceUpdate:
    return SequenceUpdate("a", index, list(tokens), **more)


def test_a_sequence_is_one_update_once_it_has_ended() -> None:
    gathered = Gathered()
    assert gathered.add(update(0, 1, num_cached_tokens=7, prefill=0.5, time=1.0), 0.0) == []
    assert gathered.add(update(0, 2, cumulative_logprob=-1.0, num_accepted=1, time=2.0), 0.1) == []
    end = update(0, 3, finish_reason="stop", stop_reason=3, cumulative_logprob=-2.0, num_rejected=2, time=3.0)
    (told,) = gathered.add(end, 0.2)
    expected = {"num_cached_tokens": 7, "prefill": 0.5, "num_accepted": 1, "num_rejected": 2, "time": 3.0}
    assert told == update(0, 1, 2, 3, finish_reason="stop", stop_reason=3, cumulative_logprob=-2.0, **expected)
    assert gathered.all() == []


def test_what_has_been_kept_for_long_is_told_whole() -> None:
    gathered = Gathered()
    gathered.add(update(0, 1), 5.0)
    gathered.add(SequenceUpdate("b", 0, [2]), 5.5)
    assert gathered.due(5.0 + HELD_SECONDS / 2) == []
    assert gathered.due(5.0 + HELD_SECONDS) == [update(0, 1), SequenceUpdate("b", 0, [2])]
    gathered.add(update(0, 3), 9.0)
    assert gathered.due(9.5) == [], "it is kept for as long again"
    gathered.add(update(0, *range(HELD_TOKENS)), 9.5)
    assert len(gathered.due(9.5)[0].token_ids) == HELD_TOKENS + 1, "a message may be full"
    assert gathered.due(99.0) == []


def test_forced_tokens_stay_apart_and_the_request_together() -> None:
    gathered = Gathered()
    for each in (update(1, 1), update(0, 2), update(0, 3, 4, num_forced=1), update(0, 5), update(1, 6)):
        assert gathered.add(each, 0.0) == []
    told = gathered.add(update(1, finish_reason="length"), 0.0)
    assert told == [update(1, 1, 6, finish_reason="length"), update(0, 2), update(0, 3, 4, num_forced=1), update(0, 5)]


def test_log_probabilities_come_with_their_tokens() -> None:
    gathered = Gathered()
    gathered.add(update(0, 1, logprobs=["one"]), 0.0)
    gathered.add(update(0, logprobs=None), 0.0)
    (told,) = gathered.add(update(0, 2, logprobs=["two"], finish_reason="stop"), 0.0)
    assert told.logprobs == ["one", "two"]


@pytest.mark.parametrize(
    ("more", "gathers"),
    [({"priority": BELOW_ALL}, True), ({"priority": 5}, False), ({"priority": BELOW_ALL, "alone": True}, False)],
)
def test_who_is_waited_for_is_told_at_once(fake: Any, more: dict[str, Any], gathers: bool) -> None:
    assert is_gathered(replace(fake.request("a", [1, 2]), **more)) == gathers
    assert not is_gathered(replace(fake.request("a", [1, 2], stop=["x"]), **more)), "its caller ends it"


class Listening:
    """Remembers in which calls a request's tokens came."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: dict[str, list[list[int]]] = defaultdict(list)
        self.ended = asyncio.Event()
        self.error: Exception | None = None

    def updated(self, updates: list[SequenceUpdate]) -> None:
        for each in updates:
            self.calls[each.request_id].append(each.token_ids)
            if each.finish_reason is not None and each.request_id == "line":
                self.ended.set()

    def failed(self, request_id: str, error: Exception) -> None:
        self.error = error
        self.ended.set()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_line_is_told_once_beside_a_stream(fake: Any, ahead: bool) -> None:
    engine = AsyncEngine(fake.engine(num_blocks=256, async_scheduling=ahead))

    async def run() -> None:
        listening = Listening()
        engine.submit(fake.request("line", [1, 2, 3], max_tokens=20, priority=BELOW_ALL), listening)
        engine.submit(fake.request("person", [4, 5], max_tokens=20), listening)
        async with asyncio.timeout(20):
            await listening.ended.wait()
        assert listening.calls["line"] == [fake.expected([1, 2, 3], 20)]
        assert len(listening.calls["person"]) == 20

    try:
        asyncio.run(run())
    finally:
        engine.close()


def test_what_was_computed_is_told_before_the_engine_stops(fake: Any) -> None:
    inner = fake.engine(num_blocks=256)
    model, steps = fake.model(inner), 0
    launch = model.launch

    def dying(batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 5:
            raise EngineDead("a rank is gone")
        time.sleep(0.001)
        return launch(batch)

    model.launch = dying
    engine = AsyncEngine(inner)

    async def run() -> None:
        listening = Listening()
        engine.submit(fake.request("line", [1, 2, 3], max_tokens=20, priority=BELOW_ALL), listening)
        async with asyncio.timeout(20):
            await listening.ended.wait()
        assert isinstance(listening.error, EngineDead)
        assert listening.calls["line"] == [fake.expected([1, 2, 3], 5)]

    try:
        asyncio.run(run())
    finally:
        engine.close()
