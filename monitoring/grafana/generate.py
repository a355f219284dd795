"""Writes the dashboards: `python monitoring/grafana/generate.py`. The one place where a panel is changed.

A panel is its title, what it tells and when to worry, its unit, and its queries by legend. Every query selects by
the dashboard's variables: servers (`instance`, as Prometheus calls what it scrapes), models, shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SCHEMA_VERSION = 42  # of Grafana 12 and 13's classic model
WIDTH = 24  # columns of a dashboard
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

SERVER = 'instance=~"$server"'
MODEL = f'{SERVER},model_name=~"$model"'
SHARD = f'{MODEL},engine=~"$engine"'
OF_MODEL = "{{model_name}}"
OF_SHARD = "{{model_name}} {{engine}}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        text: what it tells, and what to do about it.
        unit: Grafana's name of it.
        queries: PromQL by legend.
        kind: Grafana's name of the visualisation.
        limits: (value, colour) from which a value is worth a look.
        stacked: values are parts of a whole.
        low: the smallest value shown; None lets Grafana choose.
        named: what whole numbers mean, where they are states.
    """

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    limits: tuple[tuple[float, str], ...] = ()
    stacked: bool = False
    low: float | None = 0
    named: tuple[tuple[int, str, str], ...] = ()


Rows = Sequence[tuple[str, Sequence[Panel]]]


def rate(metric: str, by: str, where: str) -> str:
    """Events per second."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str, where: str = MODEL) -> str:
    """What this share of the observations stays below."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'le, {by}', where)})"


def mean(metric: str, where: str = MODEL) -> str:
    """An observation's average."""
    return f"{rate(f'{metric}_sum', 'model_name', where)} / {rate(f'{metric}_count', 'model_name', where)}"


def share(part: str, whole: str, by: str, where: str) -> str:
    """One rate over another."""
    return f"{rate(part, by, where)} / {rate(whole, by, where)}"


def latency(title: str, text: str, metric: str, limits: tuple[tuple[float, str], ...] = ()) -> Panel:
    """The median and the slow ends of a histogram, per model."""
    queries = {f"{OF_MODEL} p{round(100 * q)}": quantile(q, metric, "model_name") for q in (0.5, 0.95, 0.99)}
    return Panel(title, text, "s", queries, limits=limits)


def stat(title: str, text: str, unit: str, query: str, limits: tuple[tuple[float, str], ...] = ()) -> Panel:
    """One large number."""
    return Panel(title, text, unit, {"": query}, "stat", width=3, height=4, limits=limits)


# ---- what there is to see --------------------------------------------------------------------------------------------

OVERVIEW: Rows = [
    ("Now", [
        stat("Models ready", "Models that can answer; one that scales to zero is ready without a shard.", "short",
             f'sum(octavo_model_status{{{MODEL},status="ready"}})'),
        stat("Models not ready", "Models that load or have failed: /v1/models says why.", "short",
             f'sum(octavo_model_status{{{MODEL},status!="ready"}})', ((1, "red"),)),
        stat("Shards", "Shards that answer the gateway.", "short", f"sum(octavo_shards{{{MODEL}}})"),
        stat("Running", "Sequences that have a place at a shard.", "short",
             f"sum(vllm:num_requests_running{{{MODEL}}})"),
        stat("Waiting", "Requests without a place: in the gateway, and at the shards.", "short",
             f"sum(octavo_requests_unplaced{{{MODEL}}}) + sum(vllm:num_requests_waiting{{{MODEL}}})", ((1, "yellow"),)),
        stat("Tokens out", "Generated tokens per second.", "short",
             f"sum(rate(vllm:generation_tokens_total{{{MODEL}}}[$__rate_interval]))"),
        stat("First token p95", "Of all models, from the request that was read to its first token.", "s",
             f"histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{{{MODEL}}}"
             "[$__rate_interval])))", ((2.5, "yellow"), (10, "red"))),
        stat("Failovers", "Requests that went on at another shard in the time shown; clients do not notice.", "short",
             f"sum(increase(octavo_stream_moves_total{{{MODEL}}}[$__range]))", ((1, "yellow"),)),
    ]),
    ("What users feel", [
        latency("Time to first token", "From the request that was read to its first token: queue and prompt. Look at "
                "the queue below first, then at the shards' prefix hits.", "vllm:time_to_first_token_seconds",
                ((2.5, "yellow"), (10, "red"))),
        latency("Time between tokens", "How steadily a stream flows. It grows with the sequences that run together; "
                "`target_itl` bounds what prompts may add.", "vllm:inter_token_latency_seconds", ((0.2, "yellow"),)),
        latency("Request duration", "From the request that was read to its last token.",
                "vllm:e2e_request_latency_seconds"),
    ]),
    ("Throughput", [
        Panel("Generated tokens per second", "Tokens that clients got.", "short",
              {OF_MODEL: rate("vllm:generation_tokens_total", "model_name", MODEL)}, stacked=True),
        Panel("Prompt tokens per second", "Tokens that came in prompts, cached ones among them.", "short",
              {OF_MODEL: rate("vllm:prompt_tokens_total", "model_name", MODEL)}, stacked=True),
        Panel("Sequences that ended, by reason", "stop: by itself; length: max_tokens; abort: its client left; error, "
              "refused: the engine could not go on, or would not.", "reqps",
              {"{{model_name}} {{finished_reason}}":
               rate("vllm:request_success_total", "model_name, finished_reason", MODEL)}, stacked=True),
    ]),
    ("Where a request's time goes", [
        latency("In the queue", "From the request that was read until its prompt is begun to be computed: more shards "
                "shorten it.", "vllm:request_queue_time_seconds", ((1, "yellow"),)),
        latency("Computing the prompt", "From there to the first token: long prompts that no cache holds, and the "
                "streams that run beside them.", "vllm:request_prefill_time_seconds"),
        Panel("Queue, prompt and answer", "Averages, one above the other.", "s",
              {f"{OF_MODEL} queue": mean("vllm:request_queue_time_seconds"),
               f"{OF_MODEL} prompt": mean("vllm:request_prefill_time_seconds"),
               f"{OF_MODEL} answer": mean("vllm:request_decode_time_seconds")}, stacked=True),
        Panel("Tokens of a request", "Half of the requests have fewer.", "short",
              {f"{OF_MODEL} prompt": quantile(0.5, "vllm:request_prompt_tokens", "model_name"),
               f"{OF_MODEL} answer": quantile(0.5, "vllm:request_generation_tokens", "model_name")}, width=12),
        Panel("Time per token of a request", "Its time after the first token over its tokens: what OpenTelemetry calls "
              "time per output token.", "s",
              {f"{{{{gen_ai_request_model}}}} {{{{gen_ai_operation_name}}}} p{round(100 * q)}":
               quantile(q, "gen_ai_server_time_per_output_token_seconds",
                        "gen_ai_request_model, gen_ai_operation_name",
                        f'{SERVER},gen_ai_request_model=~"$model"') for q in (0.5, 0.95)}, width=12),
    ]),
    ("Refused and failed", [
        Panel("Refused, by cause", "Answered with 429 or 503 and when to come again. queue: it would have waited "
              "longer than max_queue_s; starting: no shard yet; gateway: the gateway's process is the bottleneck.",
              "reqps", {"{{model_name}} {{cause}}":
                        rate("octavo_refused_requests_total", "model_name, cause", SERVER)}, stacked=True),
        Panel("Errors, by status and code", "4xx are the clients', 5xx the server's.", "reqps",
              {"{{status}} {{code}}": rate("octavo_request_errors_total", "status, code", SERVER)}, stacked=True),
        Panel("Failovers, by reason", "lost: the shard died or fell silent; left: it was told to end; refused: its "
              "engine had stopped.", "reqps",
              {"{{model_name}} {{reason}}": rate("octavo_stream_moves_total", "model_name, reason", MODEL)},
              stacked=True),
    ]),
    ("Room", [
        Panel("Seconds until a new request begins", "As the gateway predicts it, and where it begins to refuse.", "s",
              {OF_MODEL: f"max by (model_name) (octavo_queue_seconds{{{MODEL}}})",
               f"{OF_MODEL} limit": f"max by (model_name) (octavo_queue_limit_seconds{{{MODEL}}})"}),
        Panel("KV blocks held by requests, fullest shard", "At 1 sequences are preempted and computed again.",
              "percentunit", {OF_MODEL: f"max by (model_name) (vllm:kv_cache_usage_perc{{{MODEL}}})"},
              limits=((0.8, "yellow"), (0.95, "red"))),
        Panel("Prompt tokens found in the cache", "Share of all prompt tokens: computed once, used again.",
              "percentunit", {OF_MODEL: share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total",
                                              "model_name", MODEL)}),
    ]),
    ("Tenants", [
        Panel("Tokens by tenant", "Of prompts and answers; a key that is in no tenant is one of its own.", "short",
              {"{{tenant}}": f"{rate('octavo_tenant_prompt_tokens_total', 'tenant', MODEL)} + "
                             f"{rate('octavo_tenant_completion_tokens_total', 'tenant', MODEL)}"}, stacked=True),
        Panel("Engine seconds by tenant", "Of each second, what computing its tokens takes by the cost model; what the "
              "prefix cache saved is not counted.", "percentunit",
              {"{{tenant}}": rate("octavo_tenant_engine_seconds_total", "tenant", MODEL)}, stacked=True),
        Panel("Cost by tenant", "Per hour, by the prices in the config.", "short",
              {"{{tenant}}": f"3600 * {rate('octavo_tenant_cost_total', 'tenant', MODEL)}"}, stacked=True),
        Panel("Requests by tenant", "That began.", "reqps",
              {"{{tenant}}": rate("octavo_tenant_requests_total", "tenant", MODEL)}, width=12, stacked=True),
        Panel("Refused by a quota", "Of requests or tokens in a minute, or of requests at once.", "reqps",
              {"{{tenant}} {{quota}}": rate("octavo_quota_refusals_total", "tenant, quota", SERVER)}, width=12),
    ]),
    ("Gateway", [
        Panel("Lateness of the event loop", "From 0.3 s on average the gateway refuses requests: give it another "
              "process (gateway: replicas).", "s",
              {"{{instance}} {{gateway}}": f"octavo_gateway_lateness_seconds{{{SERVER}}}"},
              limits=((0.1, "yellow"), (0.3, "red"))),
        Panel("CPU", "Of the gateway's process; one is all that an event loop can use.", "percentunit",
              {"{{instance}} {{gateway}}": f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])"},
              limits=((0.7, "yellow"), (0.9, "red"))),
        Panel("Memory", "Of the gateway's process.", "bytes",
              {"{{instance}} {{gateway}}": f"process_resident_memory_bytes{{{SERVER}}}"}),
        Panel("Lines of batches", "What became of them, per second; refused ones are tried again.", "reqps",
              {"{{outcome}}": rate("octavo_batch_lines_total", "outcome", SERVER)}),
        Panel("Lines of batches that wait or run", "They run in time that nobody else needs.", "short",
              {"waiting": f"max(octavo_batch_lines_waiting{{{SERVER}}})",
               "running": f"sum(octavo_batch_lines_running{{{SERVER}}})"}),
        Panel("Batches", "Of all gateways.", "short",
              {"{{status}}": f"max by (status) (octavo_batches{{{SERVER}}})"}),
        Panel("Requests by API key", "Names of keys, never the keys; empty without keys in the config.", "reqps",
              {"{{key}}": rate("octavo_key_requests_total", "key", SERVER)}, width=12),
        Panel("Requests under way", "That run at a shard or look for one.", "short",
              {OF_MODEL: f"sum by (model_name) (octavo_requests_at_shards{{{MODEL}}})"}, width=12),
    ]),
]  # fmt: skip

SHARDS: Rows = [
    ("Work", [
        Panel("Sequences that run", "They share every step.", "short",
              {OF_SHARD: f"vllm:num_requests_running{{{SHARD}}}"}),
        Panel("Sequences that wait", "For a place or for KV blocks, at the shard.", "short",
              {OF_SHARD: f"vllm:num_requests_waiting{{{SHARD}}}"}, limits=((1, "yellow"),)),
        Panel("Generated tokens per second", "Sampled by the shard.", "short",
              {OF_SHARD: rate("octavo_shard_generation_tokens_total", "model_name, engine", SHARD)}, stacked=True),
        Panel("Prompts that wait, in seconds", "Predicted time to compute them all: what router, Retry-After and "
              "autoscaler read.", "s", {OF_SHARD: f"octavo_backlog_seconds{{{SHARD}}}"}),
        Panel("Seconds until a new request begins", "The same, with waiting for a place and blocks.", "s",
              {OF_SHARD: f"octavo_start_seconds{{{SHARD}}}"}),
        Panel("Tokens per step", "How full the batches are.", "short",
              {OF_SHARD: share("octavo_shard_generation_tokens_total", "octavo_shard_steps_total",
                               "model_name, engine", SHARD)}),
    ]),
    ("KV cache", [
        Panel("Blocks held by requests", "At 1 sequences are preempted.", "percentunit",
              {OF_SHARD: f"vllm:kv_cache_usage_perc{{{SHARD}}}"}, limits=((0.8, "yellow"), (0.95, "red"))),
        Panel("Blocks that are cached", "That no request holds: prompts to come find their beginnings there.",
              "percentunit", {OF_SHARD: f"octavo_cached_blocks{{{SHARD}}} / octavo_kv_blocks{{{SHARD}}}"}),
        Panel("Prompt tokens found in the cache", "Share of the shard's prompt tokens.", "percentunit",
              {OF_SHARD: share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total",
                               "model_name, engine", SHARD)}),
        Panel("Blocks", "Of the shard's pool.", "short", {OF_SHARD: f"octavo_kv_blocks{{{SHARD}}}"}, width=12),
        Panel("Preemptions", "Sequences that gave their blocks up and are computed again: fewer sequences "
              "(max_num_seqs), more memory or another shard help.", "reqps",
              {OF_SHARD: rate("vllm:num_preemptions_total", "model_name, engine", SHARD)}, width=12,
              limits=((0.1, "yellow"),)),
    ]),
    ("Disk tier", [
        Panel("Blocks", "Read where that was to take less time than computing, and written when the cache had no more "
              "room. What is wanted and not read failed, or is on its way.", "short",
              {f"{OF_SHARD} {what}": rate(f"octavo_tier_blocks_{what}_total", "model_name, engine", SHARD)
               for what in ("wanted", "read", "written")}),
        Panel("Bytes", "Beside what the disk can do.", "Bps",
              {f"{OF_SHARD} {what}": rate(f"octavo_tier_{what}_bytes_total", "model_name, engine", SHARD)
               for what in ("read", "written")}),
        Panel("Failures", "checksum: a damaged file; late: the disk was slower than computing; full: the disk has no "
              "room; busy: it takes blocks more slowly than they go; io: the system's log says more.", "short",
              {OF_SHARD + " {{reason}}": rate("octavo_tier_failures_total", "model_name, engine, reason", SHARD)},
              stacked=True),
    ]),
    ("Other shards' blocks", [
        Panel("Blocks", "Fetched from other shards where that was to take less time than computing, and given to them.",
              "short", {f"{OF_SHARD} {what}": rate(f"octavo_peer_blocks_{what}_total", "model_name, engine", SHARD)
                        for what in ("wanted", "read", "given")}),
        Panel("Waiting for them", "Requests that wait at a time, on average, and bytes a second.", "short",
              {f"{OF_SHARD} waiting": rate("octavo_peer_read_seconds_total", "model_name, engine", SHARD),
               f"{OF_SHARD} bytes": rate("octavo_peer_read_bytes_total", "model_name, engine", SHARD)}),
        Panel("Failures", "checksum: damaged on the way; late: computing was to be done by then; gone: the other shard "
              "has them no more; io: it has died, left or is slow.", "short",
              {OF_SHARD + " {{reason}}": rate("octavo_peer_failures_total", "model_name, engine, reason", SHARD)},
              stacked=True),
    ]),
    ("Steps", [
        Panel("A step takes", "And what the cost model had predicted, on average.", "s",
              {f"{OF_SHARD} measured": share("octavo_shard_step_seconds_total", "octavo_shard_steps_total",
                                             "model_name, engine", SHARD),
               f"{OF_SHARD} predicted": share("octavo_shard_step_predicted_seconds_total", "octavo_shard_steps_total",
                                              "model_name, engine", SHARD)}),
        Panel("Predicted over measured", "1 is a cost model that knows the machine. Far from it, routing, refusals and "
              "scaling decide by wrong times.", "short",
              {OF_SHARD: share("octavo_shard_step_predicted_seconds_total", "octavo_shard_step_seconds_total",
                               "model_name, engine", SHARD)}),
        Panel("Time spent in steps", "Of each second; more than 1 where two are in flight.", "percentunit",
              {OF_SHARD: rate("octavo_shard_step_seconds_total", "model_name, engine", SHARD)}),
    ]),
]  # fmt: skip

ROUTER: Rows = [
    ("Decisions", [
        Panel("By reason", "prefix: most of the prompt is cached there; load: the shortest wait; spread: elsewhere is "
              "quicker than the longest prefix; stale: nothing is known. docs/routing.md has the formula.", "reqps",
              {"{{model_name}} {{reason}}": rate("octavo_routed_requests_total", "model_name, reason", MODEL)},
              stacked=True),
        Panel("By shard", "Where they went.", "reqps",
              {OF_SHARD: rate("octavo_routed_requests_total", "model_name, engine", MODEL)}, stacked=True),
        Panel("In flight by shard", "Sequences that this gateway counts there.", "short",
              {OF_SHARD: f"octavo_router_in_flight{{{MODEL}}}"}, stacked=True),
    ]),
    ("Predictions", [
        Panel("First token: predicted minus measured", "Above 0: it came sooner than predicted.", "s",
              {f"{OF_MODEL} p{round(100 * q)}": quantile(q, "octavo_router_first_token_error_seconds", "model_name")
               for q in (0.05, 0.5, 0.95)}, low=None),
        Panel("Cached tokens: predicted minus found", "0 where the gateway's picture of the caches is right.", "short",
              {f"{OF_MODEL} p{round(100 * q)}": quantile(q, "octavo_router_cached_tokens_error", "model_name")
               for q in (0.05, 0.5, 0.95)}, low=None),
        Panel("Prompt tokens found in the cache", "What routing by prefix is for.", "percentunit",
              {OF_SHARD: share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total",
                               "model_name, engine", MODEL)}),
    ]),
    ("Prefixes that were not found", [
        Panel("Prompts by why not all was cached", "new: nobody asked it before. header, tools_order, thinking, "
              "retokenised: clients or templates make known texts new, docs/explain.md says how to mend it. evicted: "
              "the cache is too small. other_shard: load outweighed the prefix.", "reqps",
              {"{{model_name}} {{reason}}": rate("octavo:prefix_miss_total", "model_name, reason", MODEL)},
              width=24, stacked=True),
    ]),
    ("What the gateway knows of the caches", [
        Panel("Cached blocks known", "And those that the shard has, held ones not counted.", "short",
              {f"{OF_SHARD} known": f"octavo_router_index_blocks{{{MODEL}}}",
               f"{OF_SHARD} cached": f"octavo_cached_blocks{{{MODEL}}}"}),
        Panel("Age of what is known", "A quarter of a second at rest; it grows where a shard does not answer.", "s",
              {OF_SHARD: f"octavo_router_index_age_seconds{{{MODEL}}}"}, limits=((2, "red"),)),
        Panel("Judged by load alone", "1 while a shard's reports have stopped.", "short",
              {OF_SHARD: f"octavo_router_stale{{{MODEL}}}"}, limits=((1, "red"),)),
        Panel("Snapshots taken in", "One when a gateway meets a shard, another after each gap.", "cps",
              {OF_SHARD: rate("octavo_router_index_snapshots_total", "model_name, engine", MODEL)}),
        Panel("Gaps", "Block events that did not come: the gateway or the network was too slow.", "cps",
              {OF_SHARD: rate("octavo_router_index_gaps_total", "model_name, engine", MODEL)},
              limits=((0.1, "yellow"),)),
        Panel("Hashes left out", "Above max_blocks_per_shard; prefixes beyond them are not found.", "cps",
              {OF_SHARD: rate("octavo_router_index_skipped_blocks_total", "model_name, engine", MODEL)},
              limits=((0.1, "yellow"),)),
    ]),
]  # fmt: skip

AUTOSCALING: Rows = [
    ("Shards", [
        Panel("Wanted and there", "Between the bounds of the config. Wanted above there for long: the cluster has no "
              "room, or starts fail.", "short",
              {f"{OF_MODEL} wanted": f"max by (model_name) (octavo_shards_wanted{{{MODEL}}})",
               f"{OF_MODEL} there": f"max by (model_name) (octavo_shards{{{MODEL}}})",
               f"{OF_MODEL} least": f"max by (model_name) (octavo_shards_least{{{MODEL}}})",
               f"{OF_MODEL} most": f"max by (model_name) (octavo_shards_most{{{MODEL}}})"}, width=16, height=10),
        Panel("Models", "0 ready, 1 loading, 2 failed.", "short",
              {OF_MODEL: f'sum by (model_name) (octavo_model_status{{{MODEL},status="loading"}}) + '
                         f'2 * sum by (model_name) (octavo_model_status{{{MODEL},status="failed"}})'},
              "state-timeline", height=10, named=((0, "ready", "green"), (1, "loading", "yellow"),
                                                  (2, "failed", "red"))),
    ]),
    ("Why", [
        Panel("Demand", "Shards that the present load takes, as the autoscaler counts it.", "short",
              {OF_MODEL: f"max by (model_name) (octavo_scaling_demand_shards{{{MODEL}}})"}),
        Panel("Decisions, by reason", "Changes of the wanted number. load, coming, waiting, kv, first token, held: "
              "what asked for more; kept, quiet: there was less to do.", "short",
              {"{{model_name}} {{reason}}": "sum by (model_name, reason) (increase("
               f"octavo_scaling_decisions_total{{{MODEL}}}[$__rate_interval]))"}, stacked=True),
        Panel("Requests per second", "That ended, by themselves or not.", "reqps",
              {OF_MODEL: rate("vllm:request_success_total", "model_name", MODEL)}, stacked=True),
    ]),
    ("What it is to prevent", [
        Panel("Seconds until a new request begins", "As predicted; ttft and drain_within are held against it.", "s",
              {OF_MODEL: f"max by (model_name) (octavo_queue_seconds{{{MODEL}}})"}),
        Panel("Requests without a shard", "They wait in the gateway, where a shard that starts finds them.", "short",
              {OF_MODEL: f"sum by (model_name) (octavo_requests_unplaced{{{MODEL}}})"}),
        Panel("KV blocks held, all shards", "kv_utilization is held against it.", "percentunit",
              {OF_MODEL: f"avg by (model_name) (vllm:kv_cache_usage_perc{{{MODEL}}})"}, limits=((0.8, "yellow"),)),
    ]),
]  # fmt: skip

# ---- how Grafana wants it --------------------------------------------------------------------------------------------


def target(number: int, legend: str, query: str) -> dict[str, Any]:
    """A query of a panel."""
    return {"datasource": SOURCE, "expr": query, "legendFormat": legend, "refId": chr(ord("A") + number), "range": True}


def steps(limits: tuple[tuple[float, str], ...]) -> list[dict[str, Any]]:
    """Colours by value."""
    return [{"color": "green", "value": None}, *({"color": colour, "value": value} for value, colour in limits)]


def mappings(panel: Panel) -> list[dict[str, Any]]:
    """Names of numbers."""
    named = {str(number): {"text": text, "color": colour, "index": number} for number, text, colour in panel.named}
    return [{"type": "value", "options": named}] if named else []


def field(panel: Panel) -> dict[str, Any]:
    """How values are drawn."""
    drawn: dict[str, Any] = {}
    if panel.kind == "timeseries":
        drawn = {
            "lineWidth": 1, "fillOpacity": 25 if panel.stacked else 5, "showPoints": "never", "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
        }  # fmt: skip
    found = {"unit": panel.unit, "custom": drawn, "mappings": mappings(panel),
             "thresholds": {"mode": "absolute", "steps": steps(panel.limits)}}  # fmt: skip
    return found if panel.low is None else found | {"min": panel.low}


def options(panel: Panel) -> dict[str, Any]:
    """What a visualisation has besides."""
    if panel.kind == "stat":
        return {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "state-timeline":
        return {"showValue": "auto", "legend": {"displayMode": "list", "placement": "bottom"}}
    wide = panel.width > 8
    legend = {"displayMode": "table" if wide else "list", "placement": "right" if wide else "bottom",
              "calcs": ["mean", "max", "lastNotNull"] if wide else []}  # fmt: skip
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def drawn(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel at its place."""
    targets = [target(i, legend, query) for i, (legend, query) in enumerate(panel.queries.items())]
    return {
        "id": number, "type": panel.kind, "title": panel.title, "description": panel.text, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "targets": targets, "fieldConfig": {"defaults": field(panel), "overrides": []}, "options": options(panel),
    }  # fmt: skip


def laid_out(rows: Rows) -> Iterator[dict[str, Any]]:
    """Row after row, from left to right."""
    number = y = 0
    for title, panels in rows:
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}  # fmt: skip
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + panel.height
            number += 1
            yield drawn(panel, number, x, y)
            x += panel.width
        y += panels[-1].height


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Something to select by; all of it at first."""
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": f"{name}-values"}, "refresh": 2, "sort": 1, "multi": True,
        "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def variables(rows: Rows) -> list[dict[str, Any]]:
    """The data source, the servers, the models, and the shards where a query asks for them."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    status = f"octavo_model_status{{{SERVER}}}"
    found = [
        source,
        variable("server", "Server", "label_values(octavo_build_info, instance)"),
        variable("model", "Model", f"label_values({status}, model_name)"),
    ]
    if "$engine" in str(rows):
        found.append(variable("engine", "Shard", f"label_values(vllm:num_requests_running{{{MODEL}}}, engine)"))
    return found


def dashboard(name: str, title: str, rows: Rows) -> dict[str, Any]:
    """A dashboard in Grafana's classic model."""
    links = {"type": "dashboards", "title": "Octavo", "tags": ["octavo"], "asDropdown": False, "keepTime": True,
             "includeVars": True, "targetBlank": False}  # fmt: skip
    return {
        "uid": f"octavo-{name}", "title": title, "tags": ["octavo"], "schemaVersion": SCHEMA_VERSION, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "10s", "timezone": "browser",
        "time": {"from": "now-30m", "to": "now"}, "links": [links], "annotations": {"list": []},
        "templating": {"list": variables(rows)}, "panels": list(laid_out(rows)),
    }  # fmt: skip


DASHBOARDS = {
    "overview": dashboard("overview", "Octavo: overview", OVERVIEW),
    "shards": dashboard("shards", "Octavo: shards", SHARDS),
    "router": dashboard("router", "Octavo: router", ROUTER),
    "autoscaling": dashboard("autoscaling", "Octavo: autoscaling", AUTOSCALING),
}


def text(made: dict[str, Any]) -> str:
    """A dashboard's file."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, made in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(text(made))
