"""The shards' numbers under vLLM's names."""

from __future__ import annotations

from octavo.cost_model import Cost
from octavo.engine.load import Counters
from octavo.engine.stats import EngineStats
from octavo.load import ShardState
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.api.telemetry import Telemetry

STATE = ShardState(
    decoding=2, context=300, prefilling=1, queued=2, backlog_tokens=500, backlog_attended=60_000, chunk=1024,
    max_num_seqs=64, blocks=100, blocks_free=75, block_size=16, mean_output=7.0, cost=Cost(0.01, 1e-3, 0.0, 0.0, 0.0),
)  # fmt: skip
STATS = EngineStats(
    state=STATE,
    counters=Counters(prompt_tokens=1000, cached_tokens=600, preemptions=1),
    blocks_cached=10,
    filled_slots=390,
    generation_tokens=50,
    steps=20,
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
        f'octavo:seconds_of_work{{engine="a",model_name="m"}} {STATE.backlog_seconds}',
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
    router.route("1", [b"x"], Query(100), ["a"], 0.0)
    telemetry.watch_routers({"tiny": router})
    text = telemetry.render({}).decode()
    assert 'octavo:routed_requests_total{engine="a",model_name="tiny",reason="load"} 1.0' in text
    assert 'octavo:router_index_blocks{engine="a",model_name="tiny"} 0.0' in text
    assert 'octavo:router_stale{engine="a",model_name="tiny"} 0.0' in text
    telemetry.watch_routers({})
    assert "tiny" not in telemetry.render({}).decode()
