"""What those who watch are told: patches, samples of decisions, and who is cut off."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import EngineDead, Overloaded
from octavo.routing.policy import Query
from octavo.routing.router import Decision, Router, RoutingConfig
from octavo_serve.api.fleet import MAX_UNREAD, MAX_VIEWERS, Fleet, Sampled, State, Told, Viewer, decided, difference

VALUES = st.integers(0, 2) | st.sampled_from([[], [0], "x"])
NAMES = st.sampled_from("abc")
ROWS = st.dictionaries(NAMES, VALUES | st.dictionaries(NAMES, VALUES, max_size=2), max_size=3)
STATES = st.dictionaries(NAMES, VALUES | ROWS, max_size=3)


def patched(target: Any, patch: Any) -> Any:
    """RFC 7396's MergePatch, as the RFC has it."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = patched(target.get(name), value)
    return target


@given(st.lists(STATES, min_size=1, max_size=4))
def test_a_state_and_all_patches_are_the_last_state(states: list[dict[str, Any]]) -> None:
    known = states[0]
    for before, after in itertools.pairwise(states):
        known = patched(known, json.loads(json.dumps(difference(before, after))))
        assert known == after


@given(STATES)
def test_what_stays_is_not_said(state: dict[str, Any]) -> None:
    assert difference(state, state) == {}


class Scripted:
    """A source that shows `state`, and has a router of its own."""

    def __init__(self) -> None:
        self.state: State = {"at": 0}
        self.told: Told | None = None
        self.looks = 0
        self.broken = False

    async def look(self) -> State:
        self.looks += 1
        if self.broken:
            raise RuntimeError("a shard said something odd")
        return self.state

    def listen(self, told: Told | None) -> None:
        self.told = told


def run(scenario: Callable[[Fleet, Scripted], Awaitable[None]]) -> None:
    async def main() -> None:
        source = Scripted()
        await scenario(Fleet(source, period=0.001), source)

    asyncio.run(main())


async def events(viewer: Viewer) -> list[dict[str, Any]]:
    """The next events; none at the end."""
    chunk = (await viewer.next()).decode()
    return [json.loads(event.partition("data: ")[2]) for event in chunk.split("\n\n") if event]


async def until(viewer: Viewer, kind: str) -> dict[str, Any]:
    while True:
        for event in await events(viewer):
            if event["type"] == kind:
                return event


def test_each_viewer_knows_what_there_is() -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        first = fleet.join()
        known = (await until(first, "state"))["state"]
        source.state = {"at": 1, "shards": {"a": {"running": 2}}}
        while known != source.state:
            known = patched(known, (await until(first, "change"))["patch"])
        later = fleet.join()
        assert (await events(later))[0]["state"] == source.state

    run(scenario)


def test_nothing_is_looked_at_while_nobody_watches() -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        viewer = fleet.join()
        await until(viewer, "state")
        assert source.told is not None
        viewer.leave()
        while source.told is not None:
            await asyncio.sleep(0)
        looks = source.looks
        await asyncio.sleep(0.02)
        assert source.looks == looks
        await until(fleet.join(), "state")

    run(scenario)


def test_so_many_may_watch() -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        viewers = [fleet.join() for _ in range(MAX_VIEWERS)]
        with pytest.raises(Overloaded, match="watch this gateway already"):
            fleet.join()
        viewers[0].leave()
        fleet.join()

    run(scenario)


def test_who_does_not_read_is_left_and_the_others_go_on() -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        slow, reader = fleet.join(), fleet.join()
        dropped = asyncio.Event()
        slow.on_drop = dropped.set
        heard = 0
        while not dropped.is_set():
            heard += len(await events(reader))
        assert heard >= MAX_UNREAD
        assert await slow.next() == b""
        await until(reader, "change")

    run(scenario)


def test_streams_end_with_a_reason_and_may_come_again_unless_it_is_over() -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        viewer = fleet.join()
        await until(viewer, "state")
        fleet.end("a gateway leaves")
        assert (await until(viewer, "end"))["why"] == "a gateway leaves"
        assert await events(viewer) == []
        fleet.join()
        fleet.end("this server is about to end", over=True)
        with pytest.raises(EngineDead, match="about to end"):
            fleet.join()

    run(scenario)


def test_a_look_that_fails_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        source.broken = True
        viewer = fleet.join()
        while source.looks < 2:
            await asyncio.sleep(0)
        source.broken = False
        await until(viewer, "state")

    run(scenario)
    assert "could not look" in caplog.text


def decision(tokens: int = 100, shards: int = 2) -> Decision:
    found: list[Decision] = []
    router = Router(RoutingConfig())
    router.told = found.append
    router.route("chatcmpl-0123456789abcdef", [], Query(tokens), [f"s{i}" for i in range(shards)], now=0.0)
    return found[0]


def test_a_decision_says_the_formula_and_nothing_of_the_prompt() -> None:
    record = decided("m", decision(shards=12), at=5.0)
    assert (record["model"], record["id"], record["tokens"]) == ("m", "89abcdef", 100)
    assert (record["reason"], record["shard"]) == ("load", record["candidates"][0]["shard"])
    assert len(record["candidates"]) + record["more"] == 12
    for shard in record["candidates"]:
        terms = sum(shard[name] for name in ("wait", "queue", "own", "others"))
        assert terms == pytest.approx(shard["total"], abs=1e-4)


def test_decisions_reach_who_watches_now_and_who_comes_later() -> None:
    async def scenario(fleet: Fleet, source: Scripted) -> None:
        viewer = fleet.join()
        await until(viewer, "state")
        assert source.told is not None
        source.told("m", decision())
        said = await until(viewer, "routing")
        assert [one["model"] for one in said["decisions"]] == ["m"]
        assert said["left_out"] == 0
        assert (await until(fleet.join(), "state"))["decisions"] == said["decisions"]

    run(scenario)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.integers(1, 20))
def test_samples_are_few_and_all_are_counted(periods: list[int], most: int) -> None:
    sampled = Sampled(most, kept=10)
    for number in periods:
        for index in range(number):
            if sampled.wants():
                sampled.add(index)
        new, left_out = sampled.take()
        assert len(new) <= most
        assert len(new) + left_out == number
    assert len(sampled.latest) <= 10


def test_a_steady_rate_is_sampled_evenly() -> None:
    sampled = Sampled(10, kept=10)
    for _ in range(2):
        for index in range(100):
            if sampled.wants():
                sampled.add(index)
        new, _ = sampled.take()
    assert new == list(range(9, 100, 10))
