"""The metrics as Prometheus reads them: names, labels, aliases, and what is withheld."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.cost_model import Cost
from octavo.engine.load import Counters
from octavo.engine.stats import EngineStats
from octavo.load import ShardState
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.api.exposition import render
from octavo_serve.api.telemetry import ModelState, ShardStats, Telemetry, Watched
from octavo_serve.wire.scaling import Scaling

STATE = ShardState(
    decoding=2, context=300, prefilling=1, queued=2, backlog_tokens=500, backlog_attended=60_000, chunk=1024,
    max_num_seqs=64, blocks=100, blocks_free=75, block_size=16, mean_output=7.0, cost=Cost(0.01, 1e-3, 0.0, 0.0, 0.0),
)  # fmt: skip
STATS = EngineStats(
    state=STATE,
    counters=Counters(
        prompt_tokens=1000,
        cached_tokens=600,
        preemptions=1,
        drafts=4,
        proposed=9,
        accepted=[3, 2],
        by_origin={"recent": (9, 5)},
    ),
    blocks_cached=10,
    filled_slots=390,
    generation_tokens=50,
    steps=20,
)
MODEL = ModelState(
    status="ready", shards=2, least=1, most=4, running=3, waiting=1, queue_seconds=0.5, queue_limit=30.0,
    refused={"queue": 5},
)  # fmt: skip


def samples(telemetry: Telemetry, shards: ShardStats, tells: bool = True) -> dict[tuple[str, ...], float]:
    """Each sample's value, by its name and its labels' values in the order of the labels' names."""
    return dict(_samples(asyncio.run(render(telemetry, shards, tells)).decode()))


def _samples(text: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield (sample.name, *(sample.labels[name] for name in sorted(sample.labels))), sample.value


@pytest.fixture
def telemetry() -> Telemetry:
    """One chat with one token, and a model that is served."""
    telemetry, router = Telemetry(), Router(RoutingConfig())
    router.join("a", 0.0)
    router.route("1", [b"x" * 16], Query(100), ["a"], 0.0)
    telemetry.models = {"m": Watched(router, lambda: MODEL)}
    timer = telemetry.request("m", 7, "chat")
    timer.tokens(0, 2)
    timer.tokens(0, 3)
    timer.finished("stop")
    timer.done()
    return telemetry


def test_shards_are_told_apart() -> None:
    found = samples(Telemetry(), {"m": [("a", STATS), ("b", STATS)]})
    expected = {
        ("vllm:num_requests_running", "a", "m"): 3,
        ("vllm:num_requests_waiting", "b", "m"): 2,
        ("vllm:kv_cache_usage_perc", "a", "m"): 0.25,
        ("vllm:prefix_cache_queries_total", "a", "m"): 1000,
        ("vllm:prefix_cache_hits_total", "b", "m"): 600,
        ("vllm:num_preemptions_total", "a", "m"): 1,
        ("vllm:spec_decode_num_drafts_total", "a", "m"): 4,
        ("vllm:spec_decode_num_draft_tokens_total", "a", "m"): 9,
        ("vllm:spec_decode_num_accepted_tokens_total", "b", "m"): 5,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "b", "m", "0"): 3,
        ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "b", "m", "1"): 2,
        ("octavo_guessed_tokens_total", "a", "m", "recent"): 9,
        ("octavo_guessed_tokens_right_total", "b", "m", "recent"): 5,
        ("octavo_backlog_seconds", "a", "m"): STATE.backlog_seconds,
        ("octavo_start_seconds", "a", "m"): STATE.start_seconds(),
    }
    assert expected.items() <= found.items()


def test_one_count_has_vllms_name_and_opentelemetrys(telemetry: Telemetry) -> None:
    found = samples(telemetry, {})
    labels = "chat", "octavo", "m"
    for vllm, otel in (
        ("vllm:time_to_first_token_seconds", "gen_ai_server_time_to_first_token_seconds"),
        ("vllm:e2e_request_latency_seconds", "gen_ai_server_request_duration_seconds"),
        ("vllm:request_time_per_output_token_seconds", "gen_ai_server_time_per_output_token_seconds"),
    ):
        assert found[f"{vllm}_count", "m"] == found[f"{otel}_count", *labels] == 1
        assert found[f"{vllm}_sum", "m"] == found[f"{otel}_sum", *labels] > 0
    bounds = {key[-1] for key in found if key[0] == "gen_ai_server_request_duration_seconds_bucket"}
    assert bounds >= {"0.01", "81.92", "+Inf"}
    assert len(bounds) == 15


def test_both_kinds_of_requests_are_one_model(telemetry: Telemetry) -> None:
    telemetry.request("m", 5).tokens(0, 1)
    found = samples(telemetry, {})
    assert found["vllm:prompt_tokens_total", "m"] == 12
    assert found["vllm:generation_tokens_total", "m"] == 6
    assert found["vllm:request_prompt_tokens_sum", "m"] == 12


def test_a_model_has_zeros_before_its_first_request(telemetry: Telemetry) -> None:
    telemetry.models = {"new": telemetry.models["m"]}
    found = samples(telemetry, {})
    for name in (
        ("vllm:generation_tokens_total", "new"),
        ("vllm:request_success_total", "abort", "new"),
        ("octavo_stream_moves_total", "new", "lost"),
        ("octavo_refused_requests_total", "starting", "new"),
        ("vllm:time_to_first_token_seconds_bucket", "+Inf", "new"),
    ):
        assert found[name] == 0


def test_the_state_of_a_model(telemetry: Telemetry) -> None:
    found = samples(telemetry, {})
    expected: dict[Any, float] = {
        ("octavo_model_status", "m", "ready"): 1,
        ("octavo_model_status", "m", "failed"): 0,
        ("octavo_shards", "m"): 2,
        ("octavo_shards_most", "m"): 4,
        ("octavo_requests_at_shards", "m"): 3,
        ("octavo_requests_unplaced", "m"): 1,
        ("octavo_queue_seconds", "m"): 0.5,
        ("octavo_refused_requests_total", "queue", "m"): 5,
        ("octavo_refused_requests_total", "gateway", ""): 0,
    }
    assert expected.items() <= found.items()


def test_what_the_autoscaler_decided(telemetry: Telemetry) -> None:
    assert samples(telemetry, {})["octavo_shards_wanted", "m"] == 1, "as the settings say, where none decides"
    telemetry.scaling = {"m": Scaling(0.0, 3, 2, "load", 2.4, {"load": 2, "kv": 1})}
    found = samples(telemetry, {})
    assert (found["octavo_shards_wanted", "m"], found["octavo_scaling_demand_shards", "m"]) == (3, 2.4)
    decisions = [found["octavo_scaling_decisions_total", "m", reason] for reason in ("load", "kv", "first token")]
    assert decisions == [2, 1, 0]


def test_what_routers_know_is_shown(telemetry: Telemetry) -> None:
    found = samples(telemetry, {})
    assert found["octavo_routed_requests_total", "a", "m", "load"] == 1
    assert found["octavo_router_index_blocks", "a", "m"] == 0
    assert found["octavo_router_stale", "a", "m"] == 0
    telemetry.models = {}
    assert not any(name.startswith(("octavo_router_index", "octavo_shards")) for name, *_ in samples(telemetry, {}))


def test_gateways_are_told_apart_where_there_are_several(telemetry: Telemetry) -> None:
    telemetry.gateway = "g"
    found = samples(telemetry, {"m": [("a", STATS)]})
    assert found["vllm:generation_tokens_total", "g", "m"] == 5
    assert found["vllm:time_to_first_token_seconds_bucket", "g", "+Inf", "m"] == 1
    assert found["octavo_gateway_lateness_seconds", "g"] == 0
    assert found["vllm:num_requests_running", "a", "m"] == 3, "any gateway says the same of a shard"


def test_what_caches_hold_and_shards_are_called_is_withheld(telemetry: Telemetry) -> None:
    shards = {"m": [("secret-b", STATS), ("secret-a", STATS)]}
    text = asyncio.run(render(telemetry, shards, tells=False)).decode()
    assert "secret" not in text
    assert "cached" not in text
    assert "prefix_cache_hits" not in text
    assert "blocks_read" not in text
    assert "peer_read" not in text
    assert "router_index" not in text
    assert "process_" not in text
    assert samples(telemetry, shards, tells=False)["vllm:num_requests_running", "1", "m"] == 3
