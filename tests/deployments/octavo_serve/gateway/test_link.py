"""A gateway's end of the connection to a shard, over real sockets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from octavo_serve.gateway.link import OLD_SECONDS, UNREAD_SECONDS
from octavo_serve.wire import parts


def test_a_shard_that_falls_silent_is_left(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        first = await fleet.add()
        await fleet.add()
        unbroken = await fleet.said(client, fleet.request())

        def fall_silent() -> None:
            for peer in first.peers:
                monkeypatch.setattr(peer, "_write", lambda payload: None)

        assert await fleet.said(client, fleet.request(), {5: fall_silent}) == unbroken

    assert fleet.run(scenario, silence=1.5) == ["lost"]


def test_a_gateway_that_was_stopped_itself_takes_no_shard_for_silent(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        assert len((await fleet.said(client, fleet.request(), {5: lambda: time.sleep(2.5)}))[0]) == 40  # the whole loop
        await asyncio.sleep(0.5)
        assert list(fleet.links) == ["1"]

    assert fleet.run(scenario, silence=1.0) == []


def test_a_request_that_cannot_be_encoded_takes_no_place(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        broken = fleet.request()
        broken.params.top_k = 2**70  # as validation never lets it through
        for _ in range(3):
            with pytest.raises(OverflowError):
                await fleet.said(client, broken)
        assert len((await fleet.said(client, fleet.request()))[0]) == 40
        (link,) = fleet.links.values()
        assert link.streams == {}

    assert fleet.run(scenario) == []


def test_a_long_prompt_arrives_whole_while_others_go_on(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_TOKENS", 16)

    async def scenario(client: Any) -> None:
        port = await fleet.add()
        unbroken = await fleet.said(client, fleet.request("short", max_tokens=4))
        assert unbroken == await fleet.said(client, fleet.request("short", max_tokens=4))
        asked: list[Any] = []
        submit = port.engine.submit
        port.engine.submit = lambda request, listener: (asked.append(request), submit(request, listener))
        (link,) = fleet.links.values()
        link._channel.pause_writing()
        long = fleet.request("a long one", max_tokens=4)
        waiting = asyncio.create_task(fleet.said(client, long))
        while not link._channel._in_parts:
            await asyncio.sleep(0)
        monkeypatch.setattr(parts, "PART_TOKENS", 2**14)
        assert await fleet.said(client, fleet.request("short", max_tokens=4)) == unbroken
        monkeypatch.setattr(parts, "PART_TOKENS", 16)
        assert [request.request_id for request in asked] == ["short"]
        link._channel.resume_writing()
        assert len((await waiting)[0]) == 4
        assert asked[1].prompt_token_ids == long.prompt_token_ids

    assert fleet.run(scenario) == []


def test_of_a_long_prompt_whose_client_has_left_no_more_is_sent(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_TOKENS", 16)

    async def scenario(client: Any) -> None:
        port = await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        (peer,) = port.peers.values()
        waiting = asyncio.create_task(fleet.said(client, fleet.request("a long one")))
        while not peer._arriving._parts:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        while peer._arriving._parts or link._channel._in_parts:
            await asyncio.sleep(0)
        assert not port.engine._engine._listeners
        assert not peer.open_sequences

    fleet.run(scenario)


def test_a_shard_tells_its_statistics_to_who_asks(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        await fleet.said(client, fleet.request())
        (link,) = fleet.links.values()
        both = await asyncio.gather(link.stats(60), link.stats(60))  # one question
        assert both[0] is both[1]
        assert both[0].generation_tokens == 40
        waiting = asyncio.create_task(link.stats(60))
        await asyncio.sleep(0)
        link._channel.abort()
        assert await waiting is None
        assert await link.stats(60) is None

    fleet.run(scenario)


def test_a_shard_that_does_not_say_its_statistics_in_time_is_not_waited_for(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        held: list[Any] = []
        send = link._channel.send
        link._channel.send = held.append  # type: ignore[method-assign]
        assert await link.stats(0) is None
        link._channel.send = send  # type: ignore[method-assign]
        for message in held:
            send(message)
        assert await link.stats(60) is not None

    fleet.run(scenario)


def test_a_shard_that_says_its_statistics_late_has_the_last_ones(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        last = await link.stats(60)
        link._channel.send = lambda message: None  # type: ignore[method-assign]
        async with asyncio.timeout(50):
            assert await link.stats(60) is last
        link._stats_at -= OLD_SECONDS
        async with asyncio.timeout(50):
            assert await link.stats(60) is None

    fleet.run(scenario)


def test_statistics_that_nobody_reads_any_more_are_not_asked_for(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        assert await link.stats(60) is not None
        link._read_at -= UNREAD_SECONDS
        async with asyncio.timeout(50):
            while link._stats is not None:
                await asyncio.sleep(0.01)
        assert await link.stats(60) is not None

    fleet.run(scenario)


def test_a_retired_link_ends_with_the_last_of_its_streams(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        reader = asyncio.create_task(fleet.said(client, fleet.request()))
        while not any(link.streams for link in fleet.links.values()):
            await asyncio.sleep(0)
        for _ in range(3):  # Serve lists it, and lists it not
            client.listed([])
            await asyncio.sleep(0)
            client.listed(fleet.replicas)
            while not fleet.links:
                await asyncio.sleep(0)
        assert len((await reader)[0]) == 40
        while len(port.peers) > 1:
            await asyncio.sleep(0)

    assert fleet.run(scenario) == []
