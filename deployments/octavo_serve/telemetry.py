"""Prometheus metrics of one gateway; vLLM's names where the meaning is vLLM's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.engine.stats import EngineStats

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)

_Value = Callable[[EngineStats], float]
_GAUGES: dict[str, tuple[str, _Value]] = {
    "vllm:num_requests_running": ("Sequences the shard is generating.", lambda s: s.num_running),
    "vllm:num_requests_waiting": ("Sequences waiting at the shard.", lambda s: s.num_waiting),
    "vllm:kv_cache_usage_perc": (
        "Share of KV blocks held by live requests; 1 is all of them.",
        lambda s: 1 - s.blocks_free / s.blocks_total,
    ),
    "octavo:seconds_of_work": ("Predicted time to compute all that waits.", lambda s: s.seconds_of_work),
}
_COUNTERS: dict[str, tuple[str, _Value]] = {
    "vllm:prefix_cache_queries": ("Prompt tokens of admitted requests.", lambda s: s.prompt_tokens),
    "vllm:prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda s: s.cached_tokens),
    "vllm:num_preemptions": ("Sequences preempted.", lambda s: s.preemptions),
    "octavo:shard_generation_tokens": ("Tokens the shard sampled.", lambda s: s.generation_tokens),
    "octavo:shard_steps": ("Steps of the shard's engine.", lambda s: s.steps),
}

ShardStats = Mapping[str, Sequence[tuple[str, EngineStats]]]
"""Model name -> (shard name, its statistics) for each shard that answered."""


class _Shards(Collector):
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


class Telemetry:
    """Counts what passes through one gateway; has its own registry, so that gateways in one process do not mix."""

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
        self._shards = _Shards()
        self.registry.register(self._shards)

    def request(self, model: str, prompt_tokens: int) -> RequestTimer:
        """Start the clock of one request."""
        self.prompt_tokens.labels(model).inc(prompt_tokens)
        return RequestTimer(self, model)

    def render(self, shards: ShardStats) -> bytes:
        """Everything in Prometheus' text format."""
        self._shards.stats = shards
        return generate_latest(self.registry)


class RequestTimer:
    """The times of one request, on this process's monotonic clock."""

    def __init__(self, telemetry: Telemetry, model: str) -> None:
        self._telemetry, self._model = telemetry, model
        self._start = time.monotonic()
        self._last: dict[int, float] = {}

    def tokens(self, choice: int, count: int) -> None:
        """`count` tokens of a sequence arrived now."""
        if not count:
            return
        now = time.monotonic()
        if not self._last:
            self._telemetry.first_token.labels(self._model).observe(now - self._start)
        last = self._last.get(choice)
        if last is not None:  # tokens that arrive together share the time since the last arrival
            histogram = self._telemetry.inter_token.labels(self._model)
            for _ in range(count):
                histogram.observe((now - last) / count)
        self._last[choice] = now
        self._telemetry.generation_tokens.labels(self._model).inc(count)

    def finished(self, reason: str) -> None:
        """One sequence of the request ended."""
        self._telemetry.success.labels(self._model, reason).inc()

    def done(self) -> None:
        """The whole request ended well."""
        self._telemetry.latency.labels(self._model).observe(time.monotonic() - self._start)
