"""What a gateway shows: shards in this process over real sockets, the real picker and router, Serve's words by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from octavo.routing.router import Decision, RoutingConfig
from octavo_serve.api.registry import ModelEntry
from octavo_serve.config.settings import ModelSettings
from octavo_serve.gateway import fleet as gateway_fleet
from octavo_serve.gateway.fleet import GatewayFleet
from octavo_serve.gateway.picker import Picker
from octavo_serve.gateway.shard_client import Failover, ShardClient
from octavo_serve.gateway.unread import Unread
from octavo_serve.gateway.watch import State as Deployed
from octavo_serve.ray_private import Replica
from octavo_serve.wire.scaling import Change, Scaling

SCALING = Scaling(1000.0, 2, 1, "load", 1.4, {"load": 1}, [Change(1000.0, 1, 2, "load", 1.4)])


class Books:
    """Serve's counts, which nobody reads here."""

    name, available = "shard-m", True

    def asked(self) -> None: ...

    @contextlib.contextmanager
    def queued(self, again: bool) -> Iterator[None]:
        yield

    def started(self, replica: Replica) -> None: ...

    def ended(self, replica: Replica) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Seen:
    """One gateway with one model, its shards, and what it would show."""

    shards: Any
    model: ModelSettings
    picker: Picker = field(default_factory=lambda: Picker(RoutingConfig(), Books()))
    deployed: Mapping[str, Deployed] = field(default_factory=lambda: {"gateway": Deployed(2)})
    left: int = 0
    scaling: dict[str, Scaling] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = ShardClient(self.picker, Failover(), lambda reason: None, Unread())
        self.entry = ModelEntry("m", 0, self.client)
        self.shards.tell = self.client.listed
        self.source = GatewayFleet(
            "gate", lambda: {"m": self}, self._stats, lambda: self.scaling, self._states, self._leaves
        )

    async def _stats(self) -> dict[str, Any]:
        return {"m": await self.client.stats()}

    async def _states(self) -> Mapping[str, Deployed]:
        return self.deployed

    def _leaves(self) -> None:
        self.left += 1

    async def look_twice(self) -> Mapping[str, Any]:
        """What is seen once Serve has answered, which is asked beside a look."""
        await self.source.look()
        assert self.source._asking is not None
        await self.source._asking
        return await self.source.look()

    async def shard(self, **fields: Any) -> dict[str, Any]:
        """The view of the first shard, once it shows these."""
        async with asyncio.timeout(10):
            while True:
                view: dict[str, Any] = (await self.source.look())["shards"].get("1", {})
                if fields.items() <= view.items():
                    return view
                await asyncio.sleep(0.01)


def run(fleet: Any, scenario: Callable[[Seen], Awaitable[None]], replicas: Any = 1) -> None:
    async def main() -> None:
        seen = Seen(fleet, ModelSettings(name="m", source="nowhere", replicas=replicas))
        try:
            await scenario(seen)
        finally:
            await seen.client.close()
            for port in fleet.ports:
                await port.leave(0)
                port.engine.close()

    asyncio.run(main())


def test_a_shard_before_and_while_it_works(fleet: Any) -> None:
    async def scenario(seen: Seen) -> None:
        await fleet.add()
        idle = await seen.shard(status="ready", decoding=0)
        assert idle["blocks"] == idle["blocks_free"] > 0
        asked = asyncio.create_task(fleet.said(seen.client, fleet.request(max_tokens=200)))
        busy = await seen.shard(decoding=1)
        assert busy["blocks_free"] < busy["blocks"]
        assert busy["cost"].keys() == {"step", "token", "sequence", "attended", "context"}
        asked.cancel()
        done = await seen.shard(decoding=0)
        assert (done["prompt_tokens"], done["model"]) == (20, "m")
        assert done["generated_tokens"] > 0
        assert "None" not in repr(await seen.source.look())

    run(fleet, scenario)


def test_a_shard_that_cannot_be_reached_is_shown_as_that(fleet: Any) -> None:
    async def scenario(seen: Seen) -> None:
        port = await fleet.add()
        await seen.shard(status="ready")
        fleet.kill(port)
        assert (await seen.shard(status="unreachable")).keys() >= {"model", "status"}

    run(fleet, scenario)


def test_how_a_shard_started_is_what_it_told_serve(fleet: Any) -> None:
    async def scenario(seen: Seen) -> None:
        await fleet.add()
        start = {"phases": {"model": 0.4, "network": 0.1}, "warm": True}
        first = fleet.replicas[0]
        fleet.replicas[0] = replace(first, metadata={**first.metadata, "start": start})
        fleet.tell(list(fleet.replicas))
        assert (await seen.shard(warm=True))["start"] == {"model": 0.4, "network": 0.1}

    run(fleet, scenario)


def test_a_model_and_what_scales_it(fleet: Any) -> None:
    async def scenario(seen: Seen) -> None:
        seen.deployed = {"gateway": Deployed(2), "shard-m": Deployed(1, replicas={"RUNNING": 1, "STARTING": 3})}
        seen.scaling = {"m": SCALING, "another application's": SCALING}
        found = json.loads(json.dumps(await seen.look_twice()))
        assert (found["gateway"], found["gateways"]) == ("gate", 2)
        model = found["models"]["m"]
        assert (model["least"], model["most"], model["status"]) == (1, 8, "loading")
        assert model["replicas"] == {"RUNNING": 1, "STARTING": 3}
        assert found["scaling"].keys() == {"m"}
        assert found["scaling"]["m"]["changes"][0]["reason"] == "load"

    run(fleet, scenario, {"min": 1, "max": 8})


def test_decisions_are_heard_while_somebody_listens(fleet: Any) -> None:
    async def scenario(seen: Seen) -> None:
        await fleet.add()
        await seen.shard(status="ready")
        heard: list[tuple[str, Decision]] = []
        seen.source.listen(lambda model, decision: heard.append((model, decision)))
        await fleet.said(seen.client, fleet.request("a"))
        seen.source.listen(None)
        await fleet.said(seen.client, fleet.request("b"))
        assert [(model, decision.ticket, decision.choice.order) for model, decision in heard] == [("m", "a", ["1"])]

    run(fleet, scenario)


def test_a_gateway_that_stops_is_told_once(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(seen: Seen) -> None:
        for replicas in ({"RUNNING": 2}, {"RUNNING": 1, "STOPPING": 1}, {"RUNNING": 1, "STOPPING": 1}):
            seen.deployed = {"gateway": Deployed(2, replicas=replicas)}
            await seen.look_twice()
        assert seen.left == 1

    monkeypatch.setattr(gateway_fleet, "SERVE_SECONDS", 0.0)
    run(fleet, scenario)
