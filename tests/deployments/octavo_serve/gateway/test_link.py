"""A gateway's end of the connection to a shard, over real sockets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest


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
