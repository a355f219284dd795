"""Every metric that a gateway can show, without a server."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from octavo.cost_model import Cost
from octavo.engine.load import Counters
from octavo.engine.stats import EngineStats
from octavo.kvcache.tier import TierCounters
from octavo.load import ShardState
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.api.exposition import render
from octavo_serve.api.telemetry import ModelState, Telemetry, Watched
from octavo_serve.api.usage import Usage
from octavo_serve.wire.scaling import Scaling


@pytest.fixture(scope="session")
def metrics_text() -> str:
    """/metrics of a gateway to which everything has happened once."""
    state = ShardState(
        decoding=1, context=9, prefilling=0, queued=1, backlog_tokens=5, backlog_attended=6, chunk=8, max_num_seqs=4,
        blocks=10, blocks_free=7, block_size=16, mean_output=7.0, cost=Cost(0.01, 1e-3, 0.0, 0.0, 0.0),
    )  # fmt: skip
    counters = Counters(accepted=[1], by_origin={"text": (2, 1)})
    stats = EngineStats(state=state, counters=counters, blocks_cached=1, filled_slots=9, generation_tokens=5, steps=2,
                        tier=TierCounters(failures={"late": 1}), peers=TierCounters(failures={"io": 1}),
                        given=2)  # fmt: skip
    model = ModelState(
        status="ready", shards=1, least=1, most=2, running=1, waiting=0, queue_seconds=0.1, queue_limit=30.0,
        refused={"queue": 1},
    )  # fmt: skip
    router, telemetry = Router(RoutingConfig()), Telemetry()
    router.join("s", 0.0)
    router.route("1", [b"x" * 16], Query(100), ["s"], 0.0)
    telemetry.models = {"m": Watched(router, lambda: model)}
    telemetry.scaling = {"m": Scaling(0.0, 1, 1, "load", 0.4, {"load": 2})}
    telemetry.by_key["alice"] += 1
    telemetry.misses["m", "evicted"] += 1
    timer = telemetry.request("m", 7, "chat")
    timer.tokens(0, 1)
    timer.tokens(0, 1)
    timer.began(0.1)
    timer.finished("stop")
    timer.done()
    telemetry.ledger.usage["acme", "m"] = Usage(requests=1)
    telemetry.ledger.quotas.refused["acme", "requests"] += 1
    return asyncio.run(render(telemetry, {"m": [("s", stats)]})).decode()


@pytest.fixture(scope="session")
def families(metrics_text: str) -> dict[str, Metric]:
    """By the name that its documentation has."""
    return {family.name: family for family in text_string_to_metric_families(metrics_text)}
