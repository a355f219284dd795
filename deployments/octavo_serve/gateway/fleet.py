"""What a gateway knows of its fleet, for those who watch it (`octavo_serve.api.fleet`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from octavo import __version__
from octavo.engine.stats import EngineStats
from octavo.load import ShardState
from octavo.routing.router import KnownShard
from octavo_serve.api.fleet import State, Told
from octavo_serve.api.registry import ModelEntry
from octavo_serve.api.telemetry import ShardStats
from octavo_serve.config.settings import ModelSettings, ReplicaRange, deployment_name
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.picker import Picker
from octavo_serve.gateway.shard_client import ShardClient
from octavo_serve.gateway.watch import State as Deployed
from octavo_serve.ray_private import Replica
from octavo_serve.wire.scaling import Scaling

logger = logging.getLogger("ray.serve")

SERVE_SECONDS = 10.0
"""Between two questions to Serve, how many replicas start and stop: each takes 15 ms of CPU, of a thread's."""


class Served(Protocol):
    """A model of the gateway."""

    @property
    def model(self) -> ModelSettings: ...
    @property
    def entry(self) -> ModelEntry: ...
    @property
    def picker(self) -> Picker: ...
    @property
    def client(self) -> ShardClient: ...


class GatewayFleet:
    """Looks at the models of one gateway and at their shards.

    Args:
        name: of the gateway.
        served: the models, by name.
        stats: what the shards say of themselves.
        scaling: what the autoscaler said last, by model.
        deployed: what Serve says of the application's deployments.
        on_leave: called when a gateway of the application is stopping; which one is not known.
    """

    def __init__(
        self,
        name: str,
        served: Callable[[], Mapping[str, Served]],
        stats: Callable[[], Awaitable[ShardStats]],
        scaling: Callable[[], Mapping[str, Scaling]],
        deployed: Callable[[], Awaitable[Mapping[str, Deployed]]],
        on_leave: Callable[[], object],
    ) -> None:
        self._name, self._served, self._stats, self._scaling = name, served, stats, scaling
        self._deployed, self._on_leave = deployed, on_leave
        self._told: Told | None = None
        self._states: Mapping[str, Deployed] = {}
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def listen(self, told: Told | None) -> None:
        """Hear of each routing decision from now on; None: no more."""
        self._told = told
        self._attach(self._served())

    def _attach(self, served: Mapping[str, Served]) -> None:
        for name, one in served.items():
            one.picker.router.told = None if self._told is None else partial(self._told, name)

    async def look(self) -> State:
        """All there is to see; a model that came since the last look is listened to from now on."""
        served = self._served()
        self._attach(served)
        stats = await self._stats()
        self._ask_serve()
        scaling = self._scaling()
        return {
            "at": round(time.time(), 1),
            "gateway": self._name,
            "gateways": self._states.get("gateway", Deployed()).running,
            "version": __version__,
            "models": {name: self._model(one) for name, one in served.items()},
            "shards": {
                shard: view for name, one in served.items() for shard, view in _shards(one, dict(stats.get(name, ())))
            },
            "scaling": {name: msgspec.to_builtins(scaling[name]) for name in served if name in scaling},
        }

    def _ask_serve(self) -> None:
        """What Serve says is for the next look: its controller may be slow, or gone."""
        now = time.monotonic()
        if now - self._asked >= SERVE_SECONDS and (self._asking is None or self._asking.done()):
            self._asked = now
            self._asking = asyncio.create_task(self._hear_serve())

    async def _hear_serve(self) -> None:
        before = self._states
        try:
            self._states = await self._deployed()
        except Exception as error:  # whatever ails the controller; what it said last is shown
            logger.info("Serve does not say how many replicas start and stop: %s", error)
        if _stopping(self._states) > _stopping(before):
            self._on_leave()

    def _model(self, one: Served) -> dict[str, Any]:
        entry, replicas = one.entry, one.model.replicas
        least, most = (replicas.min, replicas.max) if isinstance(replicas, ReplicaRange) else (replicas, replicas)
        return _known({
            "status": entry.status,
            "reason": entry.reason,
            "aliases": [alias.name for alias in one.model.aliases],
            "policy": one.picker.router.config.policy,
            "shards": entry.shards,
            "least": least,
            "most": most,
            "replicas": self._states.get(deployment_name(entry.name), Deployed()).replicas,
            "waiting": one.picker.num_waiting,
        })  # fmt: skip


def _stopping(states: Mapping[str, Deployed]) -> int:
    return states["gateway"].replicas.get("STOPPING", 0) if "gateway" in states else 0


def _shards(one: Served, stats: Mapping[str, EngineStats]) -> list[tuple[str, dict[str, Any]]]:
    """The shards of a model that Serve lists, by name."""
    router, found = one.picker.router, []
    for replica, link in one.client.listed_shards():
        known = router.shards.get(replica.name)
        view = {"model": one.entry.name, "status": _status(link, known, router.config.stale_after_s)}
        found.append((replica.name, _known(view | _started(replica) | _numbers(known, stats.get(replica.name)))))
    return found


def _status(link: Link | None, known: KnownShard | None, stale_after: float) -> str:
    """What can be said of a shard: "ready"; "stale": judged by load alone; "silent", "unreachable"; what its
    model does, if that is not awake; "waiting": others have other weights yet."""
    if link is None:
        return "unreachable"
    if not link.answers:
        return "silent"
    if link.phase != "awake":
        return link.phase
    if known is None:
        return "waiting"
    return "stale" if time.monotonic() - known.known_at > stale_after else "ready"


def _started(replica: Replica) -> dict[str, Any]:
    """How its start was spent, in seconds by phase, as it told Serve when it was ready."""
    start = replica.metadata.get("start", {})
    return {"start": start.get("phases"), "warm": start.get("warm")}


def _numbers(known: KnownShard | None, stats: EngineStats | None) -> dict[str, Any]:
    """A shard's load from its last report, and its counters where it answered."""
    state = stats.state if stats is not None else known.state if known is not None else None
    found: dict[str, Any] = {} if state is None else _load(state)
    if stats is not None:
        found |= {
            "blocks_cached": stats.blocks_cached,
            "prompt_tokens": stats.counters.prompt_tokens,
            "cached_tokens": stats.counters.cached_tokens,
            "generated_tokens": stats.generation_tokens,
        }
    return found


def _load(state: ShardState) -> dict[str, Any]:
    return {
        "decoding": state.decoding,
        "prefilling": state.prefilling,
        "queued": state.queued,
        "places": state.max_num_seqs,
        "start_seconds": round(state.start_seconds(), 3),
        "step_seconds": _short(state.step_seconds),
        "blocks": state.blocks,
        "blocks_free": state.blocks_free,
        "cost": {name: _short(seconds) for name, seconds in state.cost._asdict().items()},
    }


def _short(value: float) -> float:
    """Three digits of it, so that noise in the fourth is no change."""
    return float(f"{value:.3g}")


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
