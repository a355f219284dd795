"""A prompt that is computed on another shard than its stream runs on, over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.request import Placement, Request
from octavo_serve.gateway import prefill
from octavo_serve.gateway.prefill import compute_prompt


def picked(fleet: Any, name: str, pick: Any) -> Any:
    """A shard for a prompt, as a picker gives it."""
    fleet.running[name] += 1
    return pick(fleet, name, fleet.links[name], Placement("a/prefill", name, "apart", 0, 0.01))


async def two(fleet: Any) -> list[Any]:
    ports = [await fleet.add() for _ in range(2)]
    while len(fleet.links) < 2:
        await asyncio.sleep(0.01)
    return ports


def apart(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Has each request's prompt be computed on shard 2; returns those that come there."""
    seen: list[Request] = []
    usual = fleet.pick

    async def pick(request: Request) -> Any:
        found = await usual(request)
        if "2" in fleet.links and found.name != "2":
            found.prefill = picked(fleet, "2", type(found))
        return found

    monkeypatch.setattr(fleet, "pick", pick)
    return seen


def listen(port: Any, seen: list[Request]) -> None:
    submit = port.engine.submit
    port.engine.submit = lambda request, listener: (seen.append(request), submit(request, listener))


def test_the_prompt_comes_first_and_nothing_is_left_of_it(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        first, second = await two(fleet)
        unbroken = await fleet.said(client, fleet.request())
        seen = apart(fleet, monkeypatch)
        listen(first, seen)
        listen(second, seen)
        asked = fleet.request()
        asked.deadline = 50.0
        assert await fleet.said(client, asked) == unbroken
        assert [request.request_id for request in seen] == ["a/prefill", "a"]
        assert (seen[0].params.max_tokens, seen[0].deadline) == (0, None)
        assert seen[0].prompt_token_ids == seen[1].prompt_token_ids
        assert seen[1].deadline is not None
        assert seen[1].deadline < 50.0
        assert fleet.ran == [True] * 3

    assert fleet.run(scenario) == []


def test_blocks_go_to_where_the_request_will_run_as_they_are_computed(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were there before at once, each once, and nothing more once the prompt is done."""

    async def scenario(client: Any) -> None:
        first, second = await two(fleet)
        apart(fleet, monkeypatch)
        brought = asyncio.Queue[Any]()
        first.brings = lambda name, hashes: brought.put_nowait((name, hashes))
        submit, late = second.engine.submit, list[Any]()
        second.engine.submit = lambda request, listener: late.append((request, listener))
        monkeypatch.setattr(prefill, "LEAST_SECONDS", 60.0)
        fleet.held = 2
        monkeypatch.setattr(prefill, "MAX_BROUGHT", 3)
        asked = fleet.request("abcde")
        asked.block_hashes = [bytes(16)] * 6  # it is hashed for the model then
        waiting = asyncio.create_task(fleet.said(client, asked))
        name, blocks = await brought.get()
        chain = late[0][0].block_hashes
        assert len(chain) == 6
        assert (name, blocks) == ("2", chain[:2])
        fleet.held = 6
        assert await brought.get() == ("2", chain[2:5])
        assert await brought.get() == ("2", chain[5:])
        submit(*late[0])
        await waiting
        assert brought.empty()

    assert fleet.run(scenario) == []


def test_a_shard_that_dies_or_is_too_slow_leaves_the_prompt_to_the_other(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Any) -> None:
        _, second = await two(fleet)
        unbroken = await fleet.said(client, fleet.request())
        apart(fleet, monkeypatch)
        monkeypatch.setattr(prefill, "LEAST_SECONDS", 0.1)
        second.engine.submit = lambda request, listener: None  # it never says anything of it
        assert await fleet.said(client, fleet.request()) == unbroken
        monkeypatch.setattr(prefill, "LEAST_SECONDS", 60.0)
        second.engine.submit = lambda request, listener: fleet.kill(second)
        assert await fleet.said(client, fleet.request()) == unbroken

    assert fleet.run(scenario) == []


def test_who_leaves_meanwhile_leaves_nothing(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        _, second = await two(fleet)
        seen = apart(fleet, monkeypatch)
        second.engine.submit = lambda request, listener: seen.append(request)
        aborted: list[str] = []
        second.engine.abort = lambda name, index=None: aborted.append(name)
        waiting = asyncio.create_task(fleet.said(client, fleet.request()))
        while not seen:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        while not aborted:
            await asyncio.sleep(0.01)
        assert aborted == ["a/prefill"]
        assert not any(fleet.running.values())

    fleet.run(scenario)


def test_a_request_that_cannot_be_sent_there_frees_its_place(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await two(fleet)
        request, pick = fleet.request(), await fleet.pick(fleet.request())
        pick.link.close()
        await compute_prompt(request, pick, pick.link)
        assert not any(fleet.running.values())
        assert fleet.ran == [False]

    fleet.run(scenario)
