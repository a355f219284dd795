"""The shards' numbers under vLLM's names."""

from __future__ import annotations

from octavo.cost_model import Cost
from octavo.engine.stats import EngineStats
from octavo.routing.policy import Wanted
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.telemetry import Telemetry

STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    blocks_total=100,
    blocks_free=75,
    blocks_cached=10,
    filled_slots=390,
    owned_slots=400,
    sequences_arrived=9,
    sequences_finished=7,
    finished_seconds=14.0,
    prompt_tokens=1000,
    cached_tokens=600,
    generation_tokens=50,
    preemptions=1,
    steps=20,
    seconds_of_work=0.5,
    cost=Cost(0.0, 0.0, 0.0, 0.0, 0.0),
)


def test_shards_are_told_apart() -> None:
    lines = Telemetry().render({"m": [("a", STATS), ("b", STATS)]}).decode().splitlines()
    for line in (
        'vllm:num_requests_running{engine="a",model_name="m"} 3.0',
        'vllm:num_requests_waiting{engine="b",model_name="m"} 2.0',
        'vllm:kv_cache_usage_perc{engine="a",model_name="m"} 0.25',
        'vllm:prefix_cache_queries_total{engine="a",model_name="m"} 1000.0',
        'vllm:prefix_cache_hits_total{engine="b",model_name="m"} 600.0',
        'vllm:num_preemptions_total{engine="a",model_name="m"} 1.0',
    ):
        assert line in lines


def test_tokens_that_arrive_together_share_their_time() -> None:
    telemetry = Telemetry()
    timer = telemetry.request("m", prompt_tokens=7)
    for count in (1, 4):
        timer.tokens(0, count)
    timer.finished("length")
    timer.done()
    lines = telemetry.render({}).decode().splitlines()
    assert 'vllm:inter_token_latency_seconds_count{model_name="m"} 4.0' in lines
    assert 'vllm:generation_tokens_total{model_name="m"} 5.0' in lines
    assert 'vllm:prompt_tokens_total{model_name="m"} 7.0' in lines


def test_what_routers_know_is_shown() -> None:
    router, telemetry = Router(RoutingConfig()), Telemetry()
    router.join("a", 0.0)
    router.route("1", [b"x"], Wanted(100), ["a"], 0.0)
    telemetry.watch_routers({"tiny": router})
    text = telemetry.render({}).decode()
    assert 'octavo:routed_requests_total{engine="a",model_name="tiny",reason="load"} 1.0' in text
    assert 'octavo:router_index_blocks{engine="a",model_name="tiny"} 0.0' in text
    assert 'octavo:router_stale{engine="a",model_name="tiny"} 0.0' in text
    telemetry.watch_routers({})
    assert "tiny" not in telemetry.render({}).decode()
