"""The shard: one Serve replica around one engine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from ray import serve
from ray.util import get_node_ip_address

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.load_meter import LoadMeter
from octavo.engine.stats import EngineStats
from octavo.request import Request, SequenceUpdate
from octavo_serve.feed import FeedPublisher
from octavo_serve.openai.model import ModelInfo

FEED = "feed"
"""Key of a shard's metadata: the address of its feed."""


class Shard:
    """A model copy and its KV cache behind a streaming handle method.

    The engine steps in its own thread, so every method here only passes messages. Errors cross the handle as they
    are: `BadRequest`, `Overloaded`, `EngineDead`.
    """

    def __init__(self, source: str, config: EngineConfig, report_s: float) -> None:
        context = serve.get_replica_context()
        speed = config.speed_of_shard(context.rank.rank)
        self.engine = AsyncEngine.load(source, replace(config, rehearsal_speed=speed), progress=True)
        self.meter = LoadMeter(config)
        name = context.replica_id.unique_id
        host = str(get_node_ip_address())  # type: ignore[no-untyped-call]
        self.feed = FeedPublisher(name, self.engine.engine, host, report_s)

    async def generate(self, request: Request) -> AsyncIterator[list[SequenceUpdate]]:
        """Stream what each step did to the request's sequences; closing the stream aborts the request."""
        async with aclosing(self.engine.generate(request)) as stream:
            async for updates in stream:
                yield updates

    async def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its sequences; a request that runs elsewhere is none of this shard's business."""
        self.engine.abort(request_id, index)

    async def describe(self) -> ModelInfo:
        """What a gateway must know about the model to validate and route requests."""
        engine = self.engine.engine
        limits = engine.limits
        return ModelInfo(limits.name, limits.max_model_len, limits.vocab_size, engine.config.block_size)

    async def stats(self) -> tuple[str, EngineStats]:
        """This shard's name and numbers; raises `EngineDead` like `check_health`."""
        self.engine.check_health()
        return serve.get_replica_context().replica_id.unique_id, self.engine.stats()

    async def check_health(self) -> None:
        """Raises `EngineDead` when the engine's thread died or is stuck; Serve then replaces the shard."""
        self.engine.check_health()

    async def record_replica_metadata(self) -> dict[str, Any]:
        """What routers learn of this shard once."""
        return {FEED: self.feed.address}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler learns twice a second."""
        return asdict(self.meter.measure(self.engine.stats(), time.monotonic()))

    def __del__(self) -> None:
        if hasattr(self, "feed"):
            self.feed.close()
        if hasattr(self, "engine"):
            self.engine.close()
