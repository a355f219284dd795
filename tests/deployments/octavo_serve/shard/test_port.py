"""A shard's port, over real sockets: gateways that come back, die and do not read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from octavo.engine.async_engine import Stream
from octavo_serve.gateway.link import Link
from octavo_serve.shard import port
from octavo_serve.wire import parts


def test_a_shard_that_leaves_hands_over_what_does_not_end_in_time(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await fleet.said(client, fleet.request("long", max_tokens=150))
        leaving: list[asyncio.Task[None]] = []
        leave = {5: lambda: leaving.append(asyncio.create_task(first.leave(0.3)))}
        long, short = await asyncio.gather(
            fleet.said(client, fleet.request("long", max_tokens=150), leave),
            fleet.said(client, fleet.request("short", max_tokens=20)),
        )
        assert long == unbroken
        assert len(short[0]) == 20
        await leaving[0]

    assert fleet.run(scenario, moves=0) == ["left"]  # the short one ended where it was


def test_a_request_that_comes_again_before_its_old_connection_has_ended(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        unbroken = await fleet.said(client, fleet.request())
        while not fleet.links:
            await asyncio.sleep(0.01)
        old = await Link.open(fleet.address, 10.0)
        assert old is not None
        old.submit(fleet.request(), Stream(asyncio.get_running_loop()))
        while not port.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        reader = asyncio.create_task(fleet.said(client, fleet.request(), {5: old.close}))
        assert await reader == unbroken

    assert fleet.run(scenario) == []


def test_a_gateway_that_dies_leaves_nothing_at_the_shard(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        reader = asyncio.create_task(fleet.said(client, fleet.request(max_tokens=2000)))
        while not port.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        (link,) = fleet.links.values()
        fleet.tell([])
        link._channel.abort()
        await fleet.everything_is_free()
        reader.cancel()
        await asyncio.wait([reader])

    fleet.run(scenario)


def test_a_shard_leaves_a_gateway_that_does_not_read(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.shard_of_a_gateway_that_does_not_read()
        async with asyncio.timeout(60):
            await port.leave(0)
            while port.peers:
                await asyncio.sleep(0)

    fleet.run(scenario, silence=1000.0)


def test_the_numbers_of_a_long_prompt_hold_nobody_up_and_come_before_its_tokens(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Any) -> None:
        parameters = {"max_tokens": 4, "n": 2, "prompt_logprobs": 2}
        shard = await fleet.add()
        async with fleet.reading(client, fleet.request("numbers", **parameters)) as stream:
            whole = [update async for updates in stream for update in updates]
        monkeypatch.setattr(port, "PART_VALUES", 20)
        monkeypatch.setattr(parts, "PART_VALUES", 20)
        (peer,) = shard.peers
        peer.pause_writing()
        stream = client.generate(fleet.request("numbers", **parameters))
        waiting = asyncio.create_task(anext(stream))
        while not shard.peers[peer].held or shard.peers[peer].open_sequences:
            await asyncio.sleep(0)
        assert len((await fleet.said(client, fleet.request("others")))[0]) == 40
        assert not waiting.done()
        peer.resume_writing()
        updates = await waiting
        updates += [update async for more in stream for update in more]
        for index in range(2):
            ours = [update for update in updates if update.index == index]
            theirs = [update for update in whole if update.index == index]
            assert [update.token_ids for update in ours] == [update.token_ids for update in theirs]
        assert [update.prompt_logprobs for update in updates] == [update.prompt_logprobs for update in whole]
        assert len(updates[0].prompt_logprobs) == len("numbers") * 20

    assert fleet.run(scenario) == []


def test_of_numbers_that_nobody_wants_any_more_nothing_is_kept(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "PART_VALUES", 20)
    monkeypatch.setattr(parts, "PART_VALUES", 20)

    async def scenario(client: Any) -> None:
        shard = await fleet.add()
        await fleet.anybody()
        (peer,) = shard.peers
        peer.pause_writing()
        waiting = asyncio.create_task(fleet.said(client, fleet.request("numbers", prompt_logprobs=2)))
        while not shard.peers[peer].held:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        while shard.peers[peer].held:
            await asyncio.sleep(0)
        peer.resume_writing()
        while peer._in_parts:
            await asyncio.sleep(0)
        (link,) = fleet.links.values()
        assert link._prompts == {}

    fleet.run(scenario)


def test_a_gateway_that_has_fallen_silent_holds_no_place(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        monkeypatch.setattr(port, "BEAT_SECONDS", 0.2)
        shard = await fleet.add()
        shard.silence = 1.0
        reader = asyncio.create_task(fleet.said(client, fleet.request(max_tokens=4000)))
        while not shard.engine.engine.pool.num_owned:
            await asyncio.sleep(0.01)
        (link,) = fleet.links.values()
        fleet.tell([])
        monkeypatch.setattr(link._channel, "_write", lambda payload: None)
        await fleet.everything_is_free(60)
        reader.cancel()
        await asyncio.wait([reader])

    fleet.run(scenario)


def test_a_shard_that_was_stopped_itself_takes_no_gateway_for_silent(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Any) -> None:
        monkeypatch.setattr(port, "BEAT_SECONDS", 0.2)
        shard = await fleet.add()
        shard.silence = 1.0
        assert len((await fleet.said(client, fleet.request(), {5: lambda: time.sleep(1.5)}))[0]) == 40  # the whole loop
        assert len(shard.peers) == 1

    assert fleet.run(scenario, silence=1000.0) == []
