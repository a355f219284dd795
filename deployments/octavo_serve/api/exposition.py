"""A gateway's counts as Prometheus metrics: vLLM's names where the meaning is the same, and OpenTelemetry's for servers
of generative models. docs/monitoring.md lists them all.

Whatever has several names is counted once; the others are made when somebody reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from octavo import __version__
from octavo.engine.stats import EngineStats
from octavo.kvcache.tier import Failure
from octavo.request import FinishReason
from octavo.routing.router import KnownShard
from octavo.scaling.policy import Reason
from octavo_serve.api.batches.nouns import Counts, Outcome
from octavo_serve.api.batches.nouns import Status as BatchStatus
from octavo_serve.api.failures import ANSWERS
from octavo_serve.api.histogram import Histogram
from octavo_serve.api.registry import Status
from octavo_serve.api.telemetry import (
    CACHED_ERROR,
    DURATION,
    EACH_TOKEN,
    FIRST_TOKEN,
    FIRST_TOKEN_ERROR,
    OTEL_DURATION,
    TOKENS,
    Cause,
    ModelState,
    ShardStats,
    Tally,
    Telemetry,
)
from octavo_serve.api.turns import Turns
from octavo_serve.api.usage import Ledger, Usage
from octavo_serve.wire.scaling import Scaling

_MOVES = "lost", "left", "refused"
_OUTCOMES = "exported", "failed", "dropped"
_MODEL = ["model_name"]
_SHARD = [*_MODEL, "engine"]
_OTEL = ["gen_ai_request_model", "gen_ai_operation_name", "gen_ai_provider_name"]

_Family = type[GaugeMetricFamily] | type[CounterMetricFamily]
_GAUGE, _COUNTER = GaugeMetricFamily, CounterMetricFamily


class _OfShard(NamedTuple):
    """A metric that a shard's statistics hold."""

    family: _Family
    name: str
    text: str
    value: Callable[[EngineStats], float]


_OF_SHARDS = (
    _OfShard(_GAUGE, "vllm:num_requests_running", "Sequences the shard is generating.", lambda s: s.state.num_running),
    _OfShard(_GAUGE, "vllm:num_requests_waiting", "Sequences waiting at the shard.", lambda s: s.state.queued),
    _OfShard(_GAUGE, "vllm:kv_cache_usage_perc", "Share of KV blocks held by live requests; 1 is all of them.",
             lambda s: 1 - s.state.blocks_free / s.state.blocks),
    _OfShard(_COUNTER, "vllm:prefix_cache_queries", "Prompt tokens of admitted requests.",
             lambda s: s.counters.prompt_tokens),
    _OfShard(_COUNTER, "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.",
             lambda s: s.counters.cached_tokens),
    _OfShard(_COUNTER, "vllm:num_preemptions", "Sequences preempted.", lambda s: s.counters.preemptions),
    _OfShard(_COUNTER, "vllm:spec_decode_num_drafts", "Times that tokens were guessed for a sequence and checked.",
             lambda s: s.counters.drafts),
    _OfShard(_COUNTER, "vllm:spec_decode_num_draft_tokens", "Tokens guessed.", lambda s: s.counters.proposed),
    _OfShard(_COUNTER, "vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.",
             lambda s: sum(s.counters.accepted)),
    _OfShard(_GAUGE, "octavo_adapters_loaded", "LoRA adapters in memory.", lambda s: s.adapters.loaded),
    _OfShard(_COUNTER, "octavo_adapter_loads", "Times that an adapter was read.", lambda s: s.adapters.loads),
    _OfShard(_GAUGE, "octavo_adapter_requests_waiting", "Requests whose adapter is not loaded yet.",
             lambda s: s.adapters.waiting),
    _OfShard(_GAUGE, "octavo_kv_blocks", "KV blocks of the shard.", lambda s: s.state.blocks),
    _OfShard(_GAUGE, "octavo_cached_blocks", "KV blocks that no request holds and any may reuse.",
             lambda s: s.blocks_cached),
    _OfShard(_GAUGE, "octavo_states", "States of sequences that recurrent layers have room for.",
             lambda s: s.states.count),
    _OfShard(_GAUGE, "octavo_states_free", "States that no request holds, checkpoints among them.",
             lambda s: s.states.free),
    _OfShard(_GAUGE, "octavo_states_cached", "Checkpoints that no request holds and any may reuse.",
             lambda s: s.states.cached),
    _OfShard(_GAUGE, "octavo_state_bytes", "Bytes of a state.", lambda s: s.states.num_bytes),
    _OfShard(_COUNTER, "octavo_tier_blocks_wanted", "KV blocks asked of the disk tier.", lambda s: s.tier.wanted),
    _OfShard(_COUNTER, "octavo_tier_blocks_read", "KV blocks that came from there.", lambda s: s.tier.came),
    _OfShard(_COUNTER, "octavo_tier_blocks_written", "KV blocks written there.", lambda s: s.tier.written),
    _OfShard(_COUNTER, "octavo_tier_read_bytes", "Bytes of KV blocks that came.", lambda s: s.tier.bytes_read),
    _OfShard(_COUNTER, "octavo_tier_written_bytes", "Bytes of KV blocks written.", lambda s: s.tier.bytes_written),
    _OfShard(_COUNTER, "octavo_tier_read_seconds", "Time that requests waited for KV blocks to come.",
             lambda s: s.tier.read_seconds),
    _OfShard(_COUNTER, "octavo_peer_blocks_wanted", "KV blocks asked of other shards.", lambda s: s.peers.wanted),
    _OfShard(_COUNTER, "octavo_peer_blocks_read", "KV blocks that came from other shards.", lambda s: s.peers.came),
    _OfShard(_COUNTER, "octavo_peer_blocks_given", "KV blocks given to other shards.", lambda s: s.given),
    _OfShard(_COUNTER, "octavo_peer_read_bytes", "Bytes of KV blocks that came from other shards.",
             lambda s: s.peers.bytes_read),
    _OfShard(_COUNTER, "octavo_peer_read_seconds", "Time that requests waited for KV blocks of other shards.",
             lambda s: s.peers.read_seconds),
    _OfShard(_GAUGE, "octavo_backlog_seconds", "Predicted time to compute all prompts that wait.",
             lambda s: s.state.backlog_seconds),
    _OfShard(_GAUGE, "octavo_start_seconds", "Predicted time until a request that comes now begins.",
             lambda s: s.state.start_seconds()),
    _OfShard(_COUNTER, "octavo_shard_generation_tokens", "Tokens the shard sampled.", lambda s: s.generation_tokens),
    _OfShard(_COUNTER, "octavo_shard_steps", "Steps of the shard's engine.", lambda s: s.steps),
    _OfShard(_COUNTER, "octavo_shard_step_seconds", "Time that the engine's steps took.",
             lambda s: s.counters.step_seconds),
    _OfShard(_COUNTER, "octavo_shard_step_predicted_seconds", "Time that its cost model had predicted for them.",
             lambda s: s.counters.predicted_seconds),
)  # fmt: skip


class _OfRouter(NamedTuple):
    """A metric that a gateway's router holds of a shard; the value takes the monotonic time."""

    family: _Family
    name: str
    text: str
    value: Callable[[KnownShard, float], float]


_OF_ROUTERS = (
    _OfRouter(_GAUGE, "octavo_router_index_blocks", "KV blocks this gateway knows to be cached at the shard.",
              lambda s, _: len(s.blocks)),
    _OfRouter(_GAUGE, "octavo_router_index_age_seconds", "Age of what this gateway knows of the shard.",
              lambda s, now: now - s.known_at),
    _OfRouter(_GAUGE, "octavo_router_in_flight", "Sequences this gateway's router counts at the shard.",
              lambda s, _: s.in_flight),
    _OfRouter(_GAUGE, "octavo_router_stale", "1 while the shard is judged by load alone, for it was not heard.",
              lambda s, _: s.stale),
    _OfRouter(_COUNTER, "octavo_router_index_gaps", "Times that block events were missing.",
              lambda s, _: s.blocks.gaps),
    _OfRouter(_COUNTER, "octavo_router_index_snapshots", "Snapshots of the shard's cache taken in.",
              lambda s, _: s.blocks.snapshots),
    _OfRouter(_COUNTER, "octavo_router_index_skipped_blocks", "Block hashes left out for want of room.",
              lambda s, _: s.blocks.skipped),
)  # fmt: skip


class _OfModel(NamedTuple):
    """A gauge of a model's state."""

    name: str
    text: str
    value: Callable[[ModelState], float]


_OF_MODELS = (
    _OfModel("octavo_shards", "Shards that answer this gateway.", lambda s: s.shards),
    _OfModel("octavo_shards_least", "Shards that the model is to have at least.", lambda s: s.least),
    _OfModel("octavo_shards_most", "Shards that the model may have at most.", lambda s: s.most),
    _OfModel("octavo_requests_at_shards", "Requests that run at a shard or look for one.", lambda s: s.running),
    _OfModel("octavo_requests_unplaced", "Requests that wait in the gateway for a shard with room.",
             lambda s: s.waiting),
    _OfModel("octavo_queue_seconds", "Predicted time until a request that comes now begins, at the best shard.",
             lambda s: s.queue_seconds),
    _OfModel("octavo_queue_limit_seconds", "Longest such time that a request is accepted with.",
             lambda s: s.queue_limit),
)  # fmt: skip


class _OfTenant(NamedTuple):
    """A counter of what was done for a tenant."""

    name: str
    text: str
    value: Callable[[Usage], float]


_OF_TENANTS = (
    _OfTenant("octavo_tenant_requests", "Requests that began for the tenant.", lambda u: u.requests),
    _OfTenant("octavo_tenant_prompt_tokens", "Prompt tokens of the tenant.", lambda u: u.prompt_tokens),
    _OfTenant("octavo_tenant_cached_tokens", "Those of them that were found in the prefix cache.",
              lambda u: u.cached_tokens),
    _OfTenant("octavo_tenant_completion_tokens", "Tokens generated for the tenant.", lambda u: u.completion_tokens),
    _OfTenant("octavo_tenant_reasoning_tokens", "Those of them that are reasoning.", lambda u: u.reasoning_tokens),
    _OfTenant("octavo_tenant_engine_seconds", "What computing all this takes, by the cost model.",
              lambda u: u.engine_seconds),
    _OfTenant("octavo_tenant_cost", "What it costs by the prices in the config.", lambda u: u.cost),
)  # fmt: skip


class _Times(NamedTuple):
    """A histogram of a model's requests, as shown under one name."""

    name: str
    text: str
    bounds: Sequence[float]
    histogram: Callable[[Tally], Histogram]


_OF_REQUESTS = (
    _Times("vllm:time_to_first_token_seconds", "Request read to first token.", FIRST_TOKEN, lambda t: t.first_token),
    _Times("vllm:inter_token_latency_seconds", "Time between tokens of a sequence.", EACH_TOKEN,
           lambda t: t.each_token),
    _Times("vllm:request_time_per_output_token_seconds", "Mean time between tokens, per request.", EACH_TOKEN,
           lambda t: t.mean_token),
    _Times("vllm:e2e_request_latency_seconds", "Request read to last token.", DURATION, lambda t: t.duration),
    _Times("vllm:request_queue_time_seconds", "Request read until its prompt is begun to be computed.", DURATION,
           lambda t: t.queued),
    _Times("vllm:request_prefill_time_seconds", "Prompt begun to first token.", DURATION, lambda t: t.prefilling),
    _Times("vllm:request_decode_time_seconds", "First token to last token.", DURATION, lambda t: t.decoding),
    _Times("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS, lambda t: t.prompt),
    _Times("vllm:request_generation_tokens", "Generated tokens of a request.", TOKENS, lambda t: t.generated),
    _Times("octavo_router_cached_tokens_error", "Prompt tokens predicted to be cached minus those that were.",
           CACHED_ERROR, lambda t: t.cached_error),
    _Times("octavo_router_first_token_error_seconds", "Predicted time to the first token minus the measured.",
           FIRST_TOKEN_ERROR, lambda t: t.first_token_error),
)  # fmt: skip
_OF_OTEL = (
    _Times("gen_ai_server_request_duration_seconds", "Request read to last token.", OTEL_DURATION,
           lambda t: t.duration),
    _Times("gen_ai_server_time_to_first_token_seconds", "Request read to first token.", FIRST_TOKEN[:16],
           lambda t: t.first_token),
    _Times("gen_ai_server_time_per_output_token_seconds", "Mean time between tokens, per request.", EACH_TOKEN[3:16],
           lambda t: t.mean_token),
)  # fmt: skip
"""From gen-ai-metrics.md of OpenTelemetry's semantic conventions, with its buckets; of requests without an error."""

_TELLING = {
    "vllm:prefix_cache_hits", "vllm:spec_decode_num_accepted_tokens", "vllm:spec_decode_num_accepted_tokens_per_pos",
    "octavo_cached_blocks", "octavo:prefix_miss", "octavo_router_cached_tokens_error", "octavo_routed_requests",
    "octavo_states_cached", "octavo_peer_blocks_given",
    *(f"octavo_{source}_{what}" for source in ("tier", "peer")
      for what in ("blocks_wanted", "blocks_read", "read_bytes", "read_seconds")),
    *(metric.name for metric in _OF_ROUTERS),
}  # fmt: skip
"""Metric families that reveal what is cached, to the token or block, or a shard's name."""


async def render(telemetry: Telemetry, shards: ShardStats, tells: bool = True, operates: bool = True) -> bytes:
    """All metrics in Prometheus' text format, as they are now.

    Writing them takes longer than reading them, and lets others run in between: 7 ms for twelve shards of three models.

    Args:
        tells: also what caches hold, how shards are called, and what this process takes of its machine.
        operates: also what was done for each tenant.
    """
    turns, text = Turns(), bytearray()
    for metric in list(_families(telemetry, shards, tells, operates)):
        text += generate_latest(_One(metric))
        if turns.over:
            await turns.pause()
    return bytes(text)


class _One(NamedTuple):
    """A registry of one metric."""

    metric: Metric

    def collect(self) -> Iterable[Metric]:
        return (self.metric,)


def _families(telemetry: Telemetry, shards: ShardStats, tells: bool, operates: bool) -> Iterator[Metric]:
    named = shards if tells else {model: _numbered(found) for model, found in shards.items()}
    of_gateway = [*_of_gateway(telemetry), *_of_requests(telemetry), *_of_models(telemetry), *_of_routers(telemetry),
                  *(_of_tenants(telemetry.ledger) if tells and operates else ()),
                  *_of_misses(telemetry), *(_PROCESS.collect() if tells else ())]  # fmt: skip
    if telemetry.gateway:
        for sample in (sample for metric in of_gateway for sample in metric.samples):
            sample.labels["gateway"] = telemetry.gateway
    for metric in (*of_gateway, *_of_shards(named)):
        if tells or metric.name not in _TELLING:
            yield metric


_PROCESS = ProcessCollector(registry=None)


def _numbered(shards: Sequence[tuple[str, EngineStats]]) -> list[tuple[str, EngineStats]]:
    return [(str(i), stats) for i, (_, stats) in enumerate(sorted(shards, key=lambda shard: shard[0]))]


def _of_shards(stats: ShardStats) -> Iterator[Metric]:
    samples = [([model, shard], found) for model, shards in stats.items() for shard, found in shards]
    for metric in _OF_SHARDS:
        family = metric.family(metric.name, metric.text, labels=_SHARD)
        for labels, found in samples:
            family.add_metric(labels, metric.value(found))
        yield family
    right = _COUNTER("vllm:spec_decode_num_accepted_tokens_per_pos", "Guessed tokens that were right, by their place.",
                     labels=[*_SHARD, "position"])  # fmt: skip
    for labels, found in samples:
        for position, count in enumerate(found.counters.accepted):
            right.add_metric([*labels, str(position)], count)
    yield right
    guessed = _COUNTER("octavo_guessed_tokens", "Tokens guessed, by where from.", labels=[*_SHARD, "origin"])
    kept = _COUNTER("octavo_guessed_tokens_right", "Guessed tokens that were right, by where from.",
                    labels=[*_SHARD, "origin"])  # fmt: skip
    for labels, found in samples:
        for origin, (count, were_right) in found.counters.by_origin.items():
            guessed.add_metric([*labels, origin], count)
            kept.add_metric([*labels, origin], were_right)
    of_tier = _COUNTER("octavo_tier_failures", "KV blocks that did not come, or were not kept.",
                       labels=[*_SHARD, "reason"])  # fmt: skip
    of_peers = _COUNTER("octavo_peer_failures", "KV blocks that did not come from other shards.",
                        labels=[*_SHARD, "reason"])  # fmt: skip
    for labels, found in samples:
        for reason in get_args(Failure):
            of_tier.add_metric([*labels, reason], found.tier.failures.get(reason, 0))
            of_peers.add_metric([*labels, reason], found.peers.failures.get(reason, 0))
    yield from (guessed, kept, of_tier, of_peers)


def _of_routers(telemetry: Telemetry) -> Iterator[Metric]:
    """What the routers know of the shards. Lists, for a router's own thread may add to the tables meanwhile."""
    now = time.monotonic()
    shards = [([model, name], shard) for model, watched in telemetry.models.items()
              for name, shard in list(watched.router.shards.items())]  # fmt: skip
    decisions = _COUNTER("octavo_routed_requests", "Requests sent to a shard.", labels=[*_SHARD, "reason"])
    for labels, shard in shards:
        for reason, count in list(shard.decisions.items()):
            decisions.add_metric([*labels, reason], count)
    yield decisions
    for metric in _OF_ROUTERS:
        family = metric.family(metric.name, metric.text, labels=_SHARD)
        for labels, shard in shards:
            family.add_metric(labels, metric.value(shard, now))
        yield family


def _of_misses(telemetry: Telemetry) -> Iterator[Metric]:
    misses = _COUNTER("octavo:prefix_miss", "Prompts of which not all was cached that could be, by why.",
                      labels=[*_MODEL, "reason"])  # fmt: skip
    for (model, reason), count in telemetry.misses.items():
        misses.add_metric([model, reason], count)
    yield misses


def _of_models(telemetry: Telemetry) -> Iterator[Metric]:
    states = {model: watched.state() for model, watched in telemetry.models.items()}
    status = _GAUGE("octavo_model_status", "1 for the status that the model has.", labels=[*_MODEL, "status"])
    for model, state in states.items():
        for each in get_args(Status):
            status.add_metric([model, each], each == state.status)
    yield status
    for metric in _OF_MODELS:
        family = _GAUGE(metric.name, metric.text, labels=_MODEL)
        for model, state in states.items():
            family.add_metric([model], metric.value(state))
        yield family
    yield from _of_scaling(states, telemetry.scaling)
    refused = _COUNTER("octavo_refused_requests", "Requests refused because they would wait too long, by what for.",
                       labels=[*_MODEL, "cause"])  # fmt: skip
    refused.add_metric(["", "gateway"], telemetry.lateness.refused)
    for model, state in states.items():
        for cause in get_args(Cause):
            refused.add_metric([model, cause], state.refused.get(cause, 0))
    yield refused


def _of_scaling(states: Mapping[str, ModelState], scaling: Mapping[str, Scaling]) -> Iterator[Metric]:
    """What the autoscaler decided; a model without one wants what its settings say."""
    wanted = _GAUGE("octavo_shards_wanted", "Shards that the model is to have now.", labels=_MODEL)
    demand = _GAUGE("octavo_scaling_demand_shards", "Shards that the present load takes.", labels=_MODEL)
    decisions = _COUNTER("octavo_scaling_decisions", "Changes of the wanted number of shards, by what asked for them.",
                         labels=[*_MODEL, "reason"])  # fmt: skip
    for model, state in states.items():
        decided = scaling.get(model)
        wanted.add_metric([model], state.least if decided is None else decided.wanted)
        if decided is not None:
            demand.add_metric([model], decided.demand)
            for reason, count in (dict.fromkeys(get_args(Reason), 0) | decided.counts).items():
                decisions.add_metric([model, reason], count)
    yield from (wanted, demand, decisions)


def _of_requests(telemetry: Telemetry) -> Iterator[Metric]:
    models = _by_model(telemetry)
    prompts = _COUNTER("vllm:prompt_tokens", "Prompt tokens.", labels=_MODEL)
    tokens = _COUNTER("vllm:generation_tokens", "Generated tokens.", labels=_MODEL)
    ends = _COUNTER("vllm:request_success", "Finished sequences.", labels=[*_MODEL, "finished_reason"])
    moves = _COUNTER("octavo_stream_moves", "Requests that went on at another shard because theirs was lost, left, or "
                     "refused them.", labels=[*_MODEL, "reason"])  # fmt: skip
    for model, tally in models.items():
        prompts.add_metric([model], tally.prompt_tokens)
        tokens.add_metric([model], tally.generation_tokens)
        for end in get_args(FinishReason):
            ends.add_metric([model, end], tally.finished[end])
        for reason in _MOVES:
            moves.add_metric([model, reason], telemetry.moves[model, reason])
    yield from (prompts, tokens, ends, moves)
    for each in _OF_REQUESTS:
        yield _histogram(each, _MODEL, (([model], tally) for model, tally in models.items()))
    kinds = telemetry.tallies.items()
    for each in _OF_OTEL:
        yield _histogram(each, _OTEL, (([model, kind, "octavo"], tally) for (model, kind), tally in kinds))


def _by_model(telemetry: Telemetry) -> dict[str, Tally]:
    """Each model's counts of requests of any kind; a model that is served has zeros before its first request."""
    found = {model: Tally() for model in telemetry.models}
    for (model, _), tally in telemetry.tallies.items():
        found.setdefault(model, Tally()).add(tally)
    return found


def _histogram(times: _Times, names: list[str], tallies: Iterable[tuple[list[str], Tally]]) -> Metric:
    """Sample by sample: `add_metric` leaves the count out where a bucket is negative."""
    name, family = times.name, HistogramMetricFamily(times.name, times.text, labels=names)
    bounds = [*map(floatToGoString, times.bounds), "+Inf"]
    for values, tally in tallies:
        labels, histogram = dict(zip(names, values, strict=True)), times.histogram(tally)
        counts = histogram.cumulative(times.bounds)
        for bound, count in zip(bounds, counts, strict=True):
            family.add_sample(f"{name}_bucket", labels | {"le": bound}, count)
        family.add_sample(f"{name}_count", labels, counts[-1])
        family.add_sample(f"{name}_sum", labels, histogram.sum)
    return family


def _of_tenants(ledger: Ledger) -> Iterator[Metric]:
    for metric in _OF_TENANTS:
        family = _COUNTER(metric.name, metric.text, labels=["tenant", *_MODEL])
        for labels, used in ledger.usage.items():
            family.add_metric(labels, metric.value(used))
        yield family
    refused = _COUNTER("octavo_quota_refusals", "Requests refused because a quota was used up.",
                       labels=["tenant", "quota"])  # fmt: skip
    for labels, count in ledger.quotas.refused.items():
        refused.add_metric(labels, count)
    yield refused


def _of_gateway(telemetry: Telemetry) -> Iterator[Metric]:
    build = _GAUGE("octavo_build_info", "1, with the version.", labels=["version"])
    build.add_metric([__version__], 1)
    errors = _COUNTER("octavo_request_errors", "Requests that ended in an error.", labels=["status", "code"])
    for (status, code), count in (dict.fromkeys(ANSWERS, 0) | telemetry.errors).items():
        errors.add_metric([str(status), code], count)
    by_key = _COUNTER("octavo_key_requests", "Requests by API key.", labels=["key"])
    for key, count in telemetry.by_key.items():
        by_key.add_metric([key], count)
    spans = _COUNTER("octavo_trace_spans", "Spans of traced requests, by what became of them.", labels=["outcome"])
    for outcome in _OUTCOMES:
        spans.add_metric([outcome], telemetry.spans[outcome])
    text = "How late the gateway's event loop is, on average."
    lateness = _GAUGE("octavo_gateway_lateness_seconds", text, telemetry.lateness.seconds)
    yield from (build, errors, by_key, spans, lateness)
    yield from _of_batches(telemetry.batches)


def _of_batches(counts: Counts) -> Iterator[Metric]:
    lines = _COUNTER("octavo_batch_lines", "Lines of batches, by what became of them here.", labels=["outcome"])
    for outcome in get_args(Outcome):
        lines.add_metric([outcome], counts.lines[outcome])
    batches = _GAUGE("octavo_batches", "Batches of all gateways, by status.", labels=["status"])
    for status in get_args(BatchStatus):
        batches.add_metric([status], counts.batches[status])
    yield from (lines, batches)
    yield _GAUGE("octavo_batch_lines_running", "Lines of batches that are under way here.", counts.running)
    yield _GAUGE("octavo_batch_lines_waiting", "Lines of batches that no gateway works on yet.", counts.waiting)
