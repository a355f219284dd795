"""A shard's port, over real sockets: gateways that come back, die and do not read."""

from __future__ import annotations

import asyncio
from typing import Any

from octavo.engine.async_engine import Stream
from octavo_serve.gateway.link import Link


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
