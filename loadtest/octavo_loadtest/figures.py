"""The figures by which runs are compared, and points: one setting, measured once or several times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from octavo_loadtest.stats import mean_interval


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of a table."""

    key: str
    title: str
    unit: str
    path: tuple[str, ...]  # in a summary
    scale: float = 1.0
    digits: int = 1


FIGURES = (
    Figure("offered", "offered", "req/s", ("offered", "requests_per_s"), digits=2),
    Figure("offered_prompt_tokens", "offered in", "tok/s", ("offered", "prompt_tokens_per_s"), digits=0),
    Figure("requests", "done", "req/s", ("throughput", "steady", "requests_per_s"), digits=2),
    Figure("prompt_tokens", "input", "tok/s", ("throughput", "steady", "prompt_tokens_per_s"), digits=0),
    Figure("output_tokens", "output", "tok/s", ("throughput", "steady", "output_tokens_per_s")),
    Figure("output_tokens_overall", "output, whole run", "tok/s", ("throughput", "overall", "output_tokens_per_s")),
    Figure("in_flight", "in flight", "", ("throughput", "steady", "mean_in_flight")),
    Figure("ttft_p50", "TTFT p50", "ms", ("latency", "ttft", "headline", "p50"), 1e3),
    Figure("ttft_p90", "TTFT p90", "ms", ("latency", "ttft", "headline", "p90"), 1e3),
    Figure("ttft_p99", "TTFT p99", "ms", ("latency", "ttft", "headline", "p99"), 1e3),
    Figure("ttft_sent_p50", "TTFT p50 from sent", "ms", ("latency", "ttft", "from_sent", "p50"), 1e3),
    Figure("tpot_p50", "TPOT p50", "ms", ("latency", "tpot", "headline", "p50"), 1e3, 2),
    Figure("tpot_p90", "TPOT p90", "ms", ("latency", "tpot", "headline", "p90"), 1e3, 2),
    Figure("gap_p99", "gap p99", "ms", ("latency", "gaps", "answered_only", "p99"), 1e3),
    Figure("e2e_p50", "E2E p50", "ms", ("latency", "e2e", "headline", "p50"), 1e3, 0),
    Figure("e2e_p90", "E2E p90", "ms", ("latency", "e2e", "headline", "p90"), 1e3, 0),
    Figure("e2e_p99", "E2E p99", "ms", ("latency", "e2e", "headline", "p99"), 1e3, 0),
    Figure("normalized_mean", "normalized", "ms/tok", ("latency", "normalized", "headline", "mean"), 1e3),
    Figure("cached", "cached", "tok", ("cache", "reported"), digits=0),
    Figure("failed", "failed", "", ("counts", "failed"), digits=0),
    Figure("attainment", "kept SLO", "%", ("slo", "share"), 100.0),
    Figure("goodput", "goodput", "req/s", ("slo", "goodput_requests_per_s"), digits=2),
    Figure("tokens_per_dollar", "per dollar", "tok/$", ("cost", "output_tokens_per_dollar"), digits=0),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


def lookup(summary: dict[str, Any], path: tuple[str, ...]) -> float:
    """A number of a summary; NaN where it has none. `slo` stands for the first SLO that was asked for."""
    value: Any = {**summary, "slo": next(iter(summary.get("slos", ())), None)}
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        return math.nan
    return float(value)  # "inf" stands for an infinite latency in JSON


def point(name: str, value: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One setting: its runs, and the mean and 95 % half width of each figure over them."""
    figures = {figure.key: _over(runs, figure) for figure in FIGURES}
    return {"name": name, "value": value, "runs": runs, "figures": figures}


def _over(runs: list[dict[str, Any]], figure: Figure) -> list[float]:
    return list(mean_interval([lookup(run, figure.path) * figure.scale for run in runs]))


def missed(document: dict[str, Any]) -> list[str]:
    """The SLOs that at least one run missed."""
    found = []
    for each in document["points"]:
        for run in each["runs"]:
            found += [f"{each['name']}: {slo['name']}" for slo in run["slos"] if not slo["met"]]
    return found
