"""Prometheus metrics of one gateway, with vLLM's names where the meaning is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.engine.stats import EngineStats
from octavo.request import Placement
from octavo.routing.router import KnownShard, Router

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)

_SIGNED = (-8192, -1024, -128, -16, -1, 0, 16, 128, 1024, 8192)
_SIGNED_SECONDS = (-10.0, -1.0, -0.3, -0.1, -0.03, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)

_Value = Callable[[EngineStats], float]
_GAUGES: dict[str, tuple[str, _Value]] = {
    "vllm:num_requests_running": ("Sequences the shard is generating.", lambda s: s.state.num_running),
    "vllm:num_requests_waiting": ("Sequences waiting at the shard.", lambda s: s.state.queued),
    "vllm:kv_cache_usage_perc": (
        "Share of KV blocks held by live requests; 1 is all of them.",
        lambda s: 1 - s.state.blocks_free / s.state.blocks,
    ),
    "octavo:cached_blocks": ("KV blocks that no request holds and any may reuse.", lambda s: s.blocks_cached),
    "octavo:seconds_of_work": ("Predicted time to compute all that waits.", lambda s: s.state.backlog_seconds),
}
_COUNTERS: dict[str, tuple[str, _Value]] = {
    "vllm:prefix_cache_queries": ("Prompt tokens of admitted requests.", lambda s: s.counters.prompt_tokens),
    "vllm:prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda s: s.counters.cached_tokens),
    "vllm:num_preemptions": ("Sequences preempted.", lambda s: s.counters.preemptions),
    "octavo:shard_generation_tokens": ("Tokens the shard sampled.", lambda s: s.generation_tokens),
    "octavo:shard_steps": ("Steps of the shard's engine.", lambda s: s.steps),
}

ShardStats = Mapping[str, Sequence[tuple[str, EngineStats]]]
"""Model name -> (shard name, its statistics) for each shard that answered."""


class _ShardsCollector(Collector):
    """Turns the shards' last statistics into samples when the registry is scraped."""

    def __init__(self) -> None:
        self.stats: ShardStats = {}

    def collect(self) -> Iterable[Metric]:
        labels = ["model_name", "engine"]
        samples = [(model, shard, s) for model, shards in self.stats.items() for shard, s in shards]
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for model, shard, stats in samples:
                gauge.add_metric([model, shard], value(stats))
            yield gauge
        for name, (text, value) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for model, shard, stats in samples:
                counter.add_metric([model, shard], value(stats))
            yield counter


class _RoutersCollector(Collector):
    """Turns what the gateway's routers know about the shards into samples."""

    def __init__(self) -> None:
        self.of_model: Mapping[str, Router] = {}

    def collect(self) -> Iterable[Metric]:
        now = time.monotonic()
        shards = [(model, name, shard) for model, router in self.of_model.items()
                  for name, shard in list(router.shards.items())]  # fmt: skip
        decisions = CounterMetricFamily(
            "octavo:routed_requests", "Requests sent to a shard.", labels=["model_name", "engine", "reason"]
        )
        for model, name, shard in shards:
            for reason, count in list(shard.decisions.items()):
                decisions.add_metric([model, name, reason], count)
        yield decisions
        for metric, (kind, text, value) in _ROUTER_VIEWS.items():
            family = kind(metric, text, labels=["model_name", "engine"])
            for model, name, shard in shards:
                family.add_metric([model, name], value(shard, now))
            yield family


_View = tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, Callable[[KnownShard, float], float]]
_ROUTER_VIEWS: dict[str, _View] = {
    "octavo:router_index_blocks": (
        GaugeMetricFamily, "KV blocks this gateway knows to be cached at the shard.", lambda s, _: len(s.blocks.hashes)
    ),
    "octavo:router_index_age_seconds": (
        GaugeMetricFamily, "Age of what this gateway knows of the shard.", lambda s, now: now - s.known_at
    ),
    "octavo:router_in_flight": (
        GaugeMetricFamily, "Sequences this gateway's router counts at the shard.", lambda s, _: s.in_flight
    ),
    "octavo:router_stale": (
        GaugeMetricFamily, "1 while the shard is judged by load alone, for it was not heard.", lambda s, _: s.stale
    ),
    "octavo:router_index_gaps": (
        CounterMetricFamily, "Times that block events were missing.", lambda s, _: s.blocks.gaps
    ),
    "octavo:router_index_snapshots": (
        CounterMetricFamily, "Snapshots of the shard's cache taken in.", lambda s, _: s.blocks.snapshots
    ),
    "octavo:router_index_skipped_blocks": (
        CounterMetricFamily, "Block hashes left out for want of room.", lambda s, _: s.blocks.skipped
    ),
}  # fmt: skip

_TELLING = {
    "vllm:prefix_cache_hits", "octavo:cached_blocks", "octavo:router_cached_tokens_error", "octavo:routed_requests",
    *_ROUTER_VIEWS,
}  # fmt: skip
"""Metric families that reveal what is cached, to the token or block, or a shard's name."""


class Telemetry:
    """The metrics of one gateway. It has its own registry, so that gateways in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ["model_name"]
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens.", model, registry=self.registry)
        self.generation_tokens = Counter("vllm:generation_tokens", "Generated tokens.", model, registry=self.registry)
        self.success = Counter(
            "vllm:request_success", "Finished sequences.", [*model, "finished_reason"], registry=self.registry
        )
        self.errors = Counter(
            "octavo:request_errors", "Requests that ended in an error.", ["status"], registry=self.registry
        )
        self.by_key = Counter("octavo:key_requests", "Requests by API key.", ["key"], registry=self.registry)
        self.at_shards = Gauge(
            "octavo:requests_at_shards", "Requests that run at a shard or look for one.", model, registry=self.registry
        )
        self.moves = Counter(
            "octavo:stream_moves",
            "Requests that went on at another shard because theirs was lost, or left.",
            [*model, "reason"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Request read to first token.", model,
            buckets=_LONG, registry=self.registry,
        )  # fmt: skip
        self.inter_token = Histogram(
            "vllm:inter_token_latency_seconds", "Time between tokens of a sequence.", model,
            buckets=_SHORT, registry=self.registry,
        )  # fmt: skip
        self.latency = Histogram(
            "vllm:e2e_request_latency_seconds", "Request read to last token.", model,
            buckets=_LONG, registry=self.registry,
        )  # fmt: skip
        self.cached_error = Histogram(
            "octavo:router_cached_tokens_error", "Prompt tokens predicted to be cached minus those that were.", model,
            buckets=_SIGNED, registry=self.registry,
        )  # fmt: skip
        self.first_token_error = Histogram(
            "octavo:router_first_token_error_seconds", "Predicted time to the first token minus the measured.", model,
            buckets=_SIGNED_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._models: dict[str, _OfModel] = {}
        self._shards = _ShardsCollector()
        self.registry.register(self._shards)
        self._routers = _RoutersCollector()
        self.registry.register(self._routers)

    def watch_routers(self, of_model: Mapping[str, Router]) -> None:
        """Show exactly these routers, by model."""
        self._routers.of_model = of_model

    def moves_of(self, model: str) -> Callable[[str], None]:
        """A function that counts one move of a request of this model to another shard, by reason."""
        return lambda reason: self.moves.labels(model, reason).inc()

    def request(self, model: str, prompt_tokens: int) -> RequestTimer:
        """Start timing one request."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = _OfModel(self, model)
        found.prompt_tokens.inc(prompt_tokens)
        return RequestTimer(found)

    def render(self, shards: ShardStats, tells: bool = True) -> bytes:
        """All metrics in Prometheus' text format; unless it `tells`, without cache contents and shard names."""
        self._shards.stats = shards if tells else {model: _numbered(found) for model, found in shards.items()}
        return generate_latest(self.registry if tells else _Untelling(self.registry))


def _numbered(shards: Sequence[tuple[str, EngineStats]]) -> list[tuple[str, EngineStats]]:
    return [(str(i), stats) for i, (_, stats) in enumerate(sorted(shards, key=lambda shard: shard[0]))]


class _Untelling(Collector):
    """A registry's metrics without the families that reveal cache contents or shard names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return (metric for metric in self._registry.collect() if metric.name not in _TELLING)


class _OfModel:
    """One model's metrics that every request updates, kept here because a look-up by label takes 3 us."""

    def __init__(self, telemetry: Telemetry, model: str) -> None:
        self.prompt_tokens = telemetry.prompt_tokens.labels(model)
        self.generation_tokens = telemetry.generation_tokens.labels(model)
        self.first_token = telemetry.first_token.labels(model)
        self.inter_token = telemetry.inter_token.labels(model)
        self.latency = telemetry.latency.labels(model)
        self.cached_error = telemetry.cached_error.labels(model)
        self.first_token_error = telemetry.first_token_error.labels(model)
        self.success = partial(telemetry.success.labels, model)


class RequestTimer:
    """The times of one request, on this process's monotonic clock."""

    def __init__(self, metrics: _OfModel) -> None:
        self._metrics = metrics
        self._start = time.monotonic()
        self._last: dict[int, float] = {}

    def tokens(self, choice: int, count: int) -> None:
        """`count` tokens of a sequence arrived now."""
        if not count:
            return
        now = time.monotonic()
        if not self._last:
            self._metrics.first_token.observe(now - self._start)
        last = self._last.get(choice)
        if last is not None:  # tokens that arrive together share the time since the last arrival
            for _ in range(count):
                self._metrics.inter_token.observe((now - last) / count)
        self._last[choice] = now
        self._metrics.generation_tokens.inc(count)

    def placed(self, placement: Placement, cached_tokens: int) -> None:
        """The first token of a routed request arrived: compare it with the router's predictions."""
        self._metrics.cached_error.observe(placement.cached_tokens - cached_tokens)
        self._metrics.first_token_error.observe(placement.first_token - (time.monotonic() - self._start))

    def finished(self, reason: str) -> None:
        """One sequence of the request ended."""
        self._metrics.success(reason).inc()

    def done(self) -> None:
        """The whole request ended without an error."""
        self._metrics.latency.observe(time.monotonic() - self._start)
