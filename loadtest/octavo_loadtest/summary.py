"""Summarises a run as a dictionary: everything that a report shows, derived from the records."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest import documents
from octavo_loadtest import load as loads
from octavo_loadtest.dependence import worth
from octavo_loadtest.measure import Run
from octavo_loadtest.metrics import (
    DEFINITIONS,
    Measures,
    derive,
    in_flight,
    steady_window,
    token_times,
    tokens_of_chunks,
)
from octavo_loadtest.record import Record
from octavo_loadtest.slo import Slo, verdict
from octavo_loadtest.stats import Slope, misses_allowed, quantile, slope, upper_bound, wilson
from octavo_loadtest.verdicts import judge

Floats = NDArray[np.float64]
SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def summarize(
    run: Run, slos: list[Slo] | None = None, definitions: str = "octavo", attainment: float = 0.99, price: float = 0.0
) -> dict[str, Any]:
    """Summarize a run. `price` is dollars an hour for the whole server; `attainment` the share an SLO must reach."""
    measures = derive(run.records, DEFINITIONS[definitions])
    window = steady_window(measures)
    summary: dict[str, Any] = {
        "kind": "run",
        "started": datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        "target": {"url": run.target.url, "model": run.target.model, "api": run.target.api, "body": run.target.body},
        "load": loads.to_dict(run.load),
        "arrivals": str(run.arrivals),
        "closed": run.arrivals.closed,
        "salt": run.salt,
        "tokens_per_word": run.calibration.per_word,
        "template_tokens": run.calibration.overhead,
        "definitions": {"name": definitions, "about": measures.definition.about},
        "counts": counts(run),
        "offered": offered(run, measures),
        "latency": latencies(measures),
        "throughput": {
            "overall": rates(run.records, measures, measures.span),
            "steady": rates(run.records, measures, window),
        },
        "slos": [attained(slo, measures, window, attainment) for slo in slos or ()],
        "lengths": lengths(run.records),
        "chunks": chunks(run.records),
        "cache": cache(run),
        "client": client(run, measures),
        "saturation": saturation(measures, window[0]),
        "replicas": run.replicas,
    }
    if run.target.api == "embeddings":
        documents.add(summary, run.records, measures)
    if price:
        summary["cost"] = cost(summary["throughput"]["steady"]["output_tokens_per_s"], price)
    summary["verdicts"] = judge(summary)
    return summary


def counts(run: Run) -> dict[str, Any]:
    errors = Counter((record.error or "").split(":")[0] for record in run.records if not record.ok)
    return {
        "planned": run.planned,
        "due": len(run.records),
        "sent": sum(record.sent is not None for record in run.records),
        "ok": sum(record.ok for record in run.records),
        "failed": sum(errors.values()),
        "rejected": sum(record.status in (429, 503) for record in run.records),
        "truncated": errors["truncated"] + errors["broken"],
        "errors": dict(errors.most_common()),
        "warmup": run.warmed,
        "interrupted": run.interrupted,
        "finish_reasons": dict(Counter(record.finish_reason or "none" for record in run.records if record.ok)),
    }


def offered(run: Run, measures: Measures) -> dict[str, float]:
    """The offered load, over the time between the first and the last arrival."""
    due = np.sort(measures.scheduled)
    span = float(due[-1] - due[0]) if len(due) > 1 else 0.0
    share = (len(due) - 1) / len(due) / span if span else math.nan  # n arrivals have n-1 gaps
    prompts = sum(record.prompt_tokens or record.planned_prompt_tokens for record in run.records)
    answers = sum(record.planned_output_tokens for record in run.records)
    return {
        "span_s": span,
        "requests_per_s": len(due) * share,
        "prompt_tokens_per_s": prompts * share,
        "output_tokens_per_s": answers * share,
    }


# ---- latencies ----------------------------------------------------------------------------------------------------


def latencies(measures: Measures) -> dict[str, Any]:
    """Each measure from the schedule and from the send, by the chosen definition (headline), and of answered requests
    only."""
    order = measures.order
    answered = order[measures.ok[order]]
    found: dict[str, Any] = {}
    for key in ("ttft", "visible", "e2e", "normalized"):
        found[key] = {origin: distribution(values[key][order]) for origin, values in measures.latency.items()}
    for key in ("ttft", "visible", "e2e", "normalized", "tpot", "itl"):
        values = measures.headline()[key]
        own = {"headline": distribution(values[order]), "answered_only": distribution(values[answered])}
        found[key] = found.get(key, {}) | own
    for key, waits in (("gaps", measures.gaps), ("token_gaps", measures.token_gaps)):
        found[key] = {"answered_only": distribution(waits), "worst_tenth_mean": worst_tenth(waits)}
    return found


def distribution(values: Floats) -> dict[str, Any]:
    """Mean and percentiles of values in the order in which they became due.

    A percentile needs so many requests that as many independent ones would bound it from above at 99 % confidence. Its
    bound is infinite where these depend on each other too much; `worth` says how many independent ones they are.
    """
    values = values[~np.isnan(values)]
    found: dict[str, Any] = {
        "n": len(values),
        "worth": worth(values),
        "mean": float(values.mean()) if len(values) else math.nan,
        "min": float(values.min()) if len(values) else math.nan,
        "max": float(values.max()) if len(values) else math.nan,
    }
    for name, share in SHARES.items():
        enough = misses_allowed(len(values), share) >= 0
        found[name] = quantile(values, share) if enough else None
        found[f"{name}_bound"] = upper_bound(values, share) if enough else None
    return found


def worst_tenth(values: Floats) -> float:
    """Mean of the longest tenth: Mooncake's time between tokens."""
    return float(np.sort(values)[-max(1, len(values) // 10) :].mean()) if len(values) else math.nan


# ---- rates --------------------------------------------------------------------------------------------------------


def rates(records: list[Record], measures: Measures, window: tuple[float, float]) -> dict[str, float]:
    """Throughput in a window (s), per second."""
    start, end = window
    seconds = end - start
    if seconds <= 0:
        return dict.fromkeys(("start", "end", *_RATES), math.nan)
    times, tokens = token_times(records)
    inside = (times >= start) & (times <= end)
    done = (measures.end >= start) & (measures.end <= end) & measures.ok
    prompts = np.array([record.prompt_tokens or record.planned_prompt_tokens for record in records])
    buckets = np.bincount((times - times.min()).astype(int), tokens) if len(times) else np.zeros(1)
    return {
        "start": start,
        "end": end,
        "requests_per_s": float(done.sum()) / seconds,
        "output_tokens_per_s": float(tokens[inside].sum()) / seconds,
        "prompt_tokens_per_s": float(prompts[done].sum()) / seconds,
        "peak_output_tokens_per_s": float(buckets.max()),
        "mean_in_flight": _mean_in_flight(measures, start, end),
    }


_RATES = (
    "requests_per_s", "output_tokens_per_s", "prompt_tokens_per_s", "peak_output_tokens_per_s", "mean_in_flight",
)  # fmt: skip


def _mean_in_flight(measures: Measures, start: float, end: float) -> float:
    inside = np.clip(np.minimum(measures.end, end) - np.maximum(measures.sent, start), 0, None)
    return float(inside.sum()) / (end - start)


STEP = 0.01
"""Of an SLO's bound: latencies that differ by less are equal where their dependence is looked for. A drift far below a
bound says nothing of how often it is kept."""


def attained(slo: Slo, measures: Measures, window: tuple[float, float], target: float) -> dict[str, Any]:
    """How many of all requests that were due met an SLO; failed ones and those that were never sent did not."""
    headline = measures.headline()
    good = np.array([
        ok and slo.good({key: float(headline[key][i]) for key in headline}) for i, ok in enumerate(measures.ok)
    ])  # fmt: skip
    order = measures.order
    steps = [np.round(headline[key] / bound / STEP) for key, bound in slo.bounds.items()]
    independent = min(worth(values[order]) for values in (good.astype(float), *steps))
    interval = wilson(float(good.mean()) * independent, independent)
    start, end = window
    inside = (measures.end >= start) & (measures.end <= end)
    return {
        "name": slo.name,
        "bounds": slo.bounds,
        "target": target,
        "good": int(good.sum()),
        "share": float(good.mean()),
        "worth": independent,
        "interval": list(interval),
        "verdict": verdict(interval, target),
        "met": bool(good.mean() >= target),
        "goodput_requests_per_s": float((good & inside).sum()) / (end - start) if end > start else math.nan,
    }


def cost(tokens_per_s: float, price: float) -> dict[str, float]:
    """Dollars for a million output tokens, and tokens for a dollar."""
    per_dollar = tokens_per_s * 3600 / price
    return {
        "dollars_per_hour": price,
        "output_tokens_per_dollar": per_dollar,
        "dollars_per_million_output_tokens": 1e6 / per_dollar if per_dollar else math.inf,
    }


# ---- what the run was ---------------------------------------------------------------------------------------------


def lengths(records: list[Record]) -> dict[str, Any]:
    """Planned against realised tokens, of answered requests."""
    answered = [record for record in records if record.ok]
    prompts = [(record.planned_prompt_tokens, record.prompt_tokens) for record in answered if record.prompt_tokens]
    return {
        "prompt": _pair([float(a) for a, _ in prompts], [float(b or 0) for _, b in prompts]),
        "output": _pair(
            [float(record.planned_output_tokens) for record in answered],
            [float(record.output_tokens) for record in answered],
        ),
        "counted_by": next(iter(Counter(record.counted_by for record in answered)), "chunks"),
    }


def _pair(planned: list[float], realised: list[float]) -> dict[str, float]:
    def statistics(values: list[float]) -> tuple[float, float]:
        return (float(np.mean(values)), float(np.median(values))) if values else (math.nan, math.nan)

    (a, b), (c, d) = statistics(planned), statistics(realised)
    return {"planned_mean": a, "planned_median": b, "realised_mean": c, "realised_median": d}


def chunks(records: list[Record]) -> dict[str, Any]:
    """How many tokens a chunk holds: with more than one, gaps between chunks are not gaps between tokens."""
    dealt = [tokens_of_chunks(record) for record in records if record.ok]
    tokens = np.array([tokens for each in dealt for _, tokens in each])
    exact = any(chunk.completion_tokens is not None for record in records for chunk in record.token_chunks)
    return {
        "tokens_per_chunk_mean": float(tokens.mean()) if len(tokens) else math.nan,
        "tokens_per_chunk_max": float(tokens.max()) if len(tokens) else math.nan,
        "first_chunk_mean": float(np.mean([each[0][1] for each in dealt if each])) if any(dealt) else math.nan,
        "whole": sum(len(each) == 1 and each[0][1] > 1 for each in dealt),
        "counted": exact,
    }


def cache(run: Run) -> dict[str, Any]:
    """Cached prompt tokens: what the workload intends and what the server reports.

    A block and the chat template may be shared by all prompts; what is reported beyond that and beyond the plan is
    contamination: two prompts were alike that should not have been.
    """
    told = [record for record in run.records if record.ok and record.cached_tokens is not None]
    spare = run.calibration.overhead + 32
    excess = [max(0.0, (r.cached_tokens or 0) - r.planned_cached_tokens - spare) for r in told]
    prompts = sum(record.prompt_tokens or 0 for record in told)
    return {
        "reported_by": len(told),
        "prompt_tokens": prompts,
        "intended": sum(record.planned_cached_tokens for record in told),
        "reported": sum(record.cached_tokens or 0 for record in told),
        "unintended": sum(excess),
        "contaminated": sum(excess) > 0.01 * prompts,
    }


def client(run: Run, measures: Measures) -> dict[str, float]:
    """How the client itself performed."""
    lags = np.array(run.senders.lags)
    late = measures.late
    return {
        "processes": len(run.senders.cpu_shares),
        "cpu_share_max": max(run.senders.cpu_shares, default=math.nan),
        "lag_p50_s": quantile(lags, 0.5),
        "lag_p99_s": quantile(lags, 0.99),
        "lag_max_s": float(lags.max()) if len(lags) else math.nan,
        "late_p50_s": quantile(late, 0.5),
        "late_p99_s": quantile(late, 0.99),
        "late_max_s": float(late.max()),
        "connections": sum(record.connected is not None for record in run.records),
    }


def saturation(measures: Measures, start: float) -> dict[str, Any]:
    """Whether requests in flight and TTFT (E2E, where there is none) both rise from `start` (s) to the last arrival:
    then the queue grew without end.

    A rise must be significant and at least half of the mean: successive seconds are not independent, so the slope's
    interval alone is too narrow.
    """
    times, level = in_flight(measures.sent, measures.end)
    last = measures.span[1] if np.isnan(measures.sent).all() else float(np.nanmax(measures.sent))
    grid = np.linspace(start, last, 30)
    held = level[np.clip(np.searchsorted(times, grid, side="right") - 1, 0, None)] if len(times) else np.zeros(30)
    waits = measures.latency["from_schedule"]["ttft"]
    waits = measures.latency["from_schedule"]["e2e"] if np.isnan(waits).all() else waits
    kept = measures.ok & ~np.isnan(waits) & (measures.scheduled >= start)
    flying, waiting = slope(grid, held), slope(measures.scheduled[kept], waits[kept])
    span = last - start
    return {
        "in_flight_slope": [flying.value, flying.margin],
        "ttft_slope": [waiting.value, waiting.margin],
        "rising": _large(flying, span, held) and _large(waiting, span, waits[kept]),
    }


def _large(rise: Slope, span: float, values: Floats) -> bool:
    return rise.rises and rise.value * span > 0.5 * float(values.mean())
