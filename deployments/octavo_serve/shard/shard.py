"""The shard: one Serve replica around one engine."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.context import ReplicaContext
from ray.util import get_node_ip_address

from octavo.config import EngineConfig
from octavo.engine.load_meter import LoadMeter
from octavo.engine.served_engine import ServedEngine
from octavo.source import resolve_source
from octavo_serve.config.settings import AccuracySettings
from octavo_serve.logs import take_in_engine
from octavo_serve.ray_private import keep_serve_at_home, kept
from octavo_serve.shard.port import Port
from octavo_serve.shard.sharing import Sharing
from octavo_serve.shard.start_up import StartUp
from octavo_serve.shard.tensor_parallel import launch, see_own_gpus_only
from octavo_serve.shard.warm import keep_warm
from octavo_serve.wire.weights import Kept, decode_kept, weights_key

SWITCH_SECONDS = 0.0005
"""Longest time that the engine's Python keeps the loop from sending what a step made; Python's own 5 ms would be a
third of a first token where steps are short."""


def _require(engine: ServedEngine, source: str, config: EngineConfig, accuracy: AccuracySettings) -> None:
    """The accuracy gate, on an engine that has nothing to do yet; one that fails it is closed."""
    from octavo.evaluation.evaluate import Settings  # torch
    from octavo.evaluation.gate import require

    settings = Settings(tokens=accuracy.tokens, window=accuracy.window, max_kl=accuracy.max_kl)
    try:
        require(engine.engine.executor, source, config, settings, Path(accuracy.text), accuracy.reference)
    except Exception:
        engine.close()
        raise


def _kept(context: ReplicaContext, source: str) -> Kept:
    """What operators have done with the model's weights since it was deployed."""
    return decode_kept(kept(weights_key(context.app_name, context.deployment)), source)


class Shard:
    """A model copy and its KV cache; requests come and tokens leave through its `Port`.

    The engine steps in its own thread, so every method here only passes messages.

    Args:
        model: its name in requests, for the log.
        report_s: seconds between two reports to the routers.
        accuracy: what the engine must show first, if anything.
        warm: processes to keep ready on this node for further shards.
    """

    def __init__(
        self,
        model: str,
        source: str,
        config: EngineConfig,
        report_s: float,
        accuracy: AccuracySettings | None,
        warm: int,
    ) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        keep_serve_at_home()
        take_in_engine()
        start = StartUp()
        context = serve.get_replica_context()
        speed = config.speed_of_shard(context.rank.rank)
        see_own_gpus_only()
        ranks = launch() if config.tensor_parallel_size > 1 and config.rehearsal is None else None
        name = context.replica_id.unique_id
        record = None if config.record is None else f"{config.record}/{name}"
        own = replace(config, rehearsal_speed=speed, record=record)
        done = _kept(context, source)
        self.engine = ServedEngine.load(source, own, progress=True, launch=ranks, instead=done.path)
        while (now := _kept(context, source)).path != done.path:  # others came meanwhile
            self.engine.close()
            self.engine = ServedEngine.load(source, own, progress=True, launch=ranks, instead=now.path)
            done = now
        start.done("model")
        if accuracy is not None and not done.path:  # the gate holds the config's source against its reference
            _require(self.engine, source, config, accuracy)
            start.done("accuracy")
        self._measured, self.meter = self.engine.engine, LoadMeter(config)
        self.host = str(get_node_ip_address())  # type: ignore[no-untyped-call]
        self.port = Port(self.engine, name, report_s)
        self.sharing = None
        if config.share_kv_cache:
            self.sharing = Sharing(self.engine, resolve_source(source, config.runner), self.host, name)
            self.port.introduced, self.port.inherits = self.sharing.introduce, self.sharing.inherit
            self.port.brings = self.sharing.bring
        self.patience = 0.0
        start.done("network")
        start.publish(model, self.engine.engine.executor)
        self.start = start
        if level := _kept(context, source).level:
            self.engine.sleep(level)
        keep_warm(warm)
        gc.freeze()  # what is there now stays: each look at all objects would hold both the loop and the engine

    def reconfigure(self, settings: dict[str, float]) -> None:
        """Serve calls this at the start, and where a changed config changes what follows without a restart.

        Args:
            settings: `patience`: seconds that streams may take to end when the shard is told to leave; the rest is
                handed over.
        """
        self.patience = settings["patience"]

    async def check_health(self) -> None:
        """Raises `EngineDead` when the engine's thread died or is stuck; Serve then replaces the shard."""
        self.engine.check_health()

    async def record_replica_metadata(self) -> dict[str, Any]:
        """What gateways learn of this shard once, when it is ready."""
        shares = {} if self.sharing is None else {"kv": self.sharing.address.as_metadata()}
        return (await self.port.open(self.host)).as_metadata() | {"start": self.start.as_metadata()} | shares

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler learns twice a second: nothing of a model that sleeps, whose shards stay as they are."""
        if self.engine.phase != "awake":
            return {}
        if self._measured is not self.engine.engine:  # whose counters begin anew
            self._measured, self.meter = self.engine.engine, LoadMeter(self.engine.engine.config)
        return asdict(self.meter.measure(self.engine.stats(), time.monotonic()))

    async def __del__(self) -> None:
        """Serve calls this when the shard is told to leave and its routers know."""
        if hasattr(self, "port"):
            await self.port.leave(self.patience)
            if self.sharing is not None:
                await self.sharing.leave()
            await asyncio.to_thread(self.engine.close)
