"""Chooses a report's plots: distributions and time lines for a single point, curves for several points."""

from __future__ import annotations

import math
from typing import Any

from octavo_loadtest.svg import Chart, Line

Series = dict[str, Any]  # {"name": ..., "points": [...], "over": "rate" | "concurrency" | ...}


def of_points(series: list[Series]) -> list[Chart]:
    """Curves over the points of one or several series."""
    closed = all(each["over"] == "concurrency" for each in series)
    x, label = ("value", "requests at once") if closed else ("offered", "offered requests/s")
    charts = [] if closed else _against_tokens(series)
    charts += [
        _chart(
            "Latency against throughput",
            "output tokens/s",
            "TTFT (ms)",
            [(each, "output_tokens", "ttft_p50", f"{name} p50", False) for name, each in _named(series)]
            + [(each, "output_tokens", "ttft_p90", f"{name} p90", True) for name, each in _named(series)],
            note="From the schedule. Right and low is good; where it turns up, the server is full.",
        ),
        _chart(
            "Time per output token",
            label,
            "TPOT (ms)",
            [(each, x, "tpot_p50", f"{name} p50", False) for name, each in _named(series)]
            + [(each, x, "tpot_p90", f"{name} p90", True) for name, each in _named(series)],
            log_x=closed,
        ),
    ]
    if closed:
        charts.insert(0, _chart(
            "Throughput against requests at once", label, "output tokens/s",
            [(each, "value", "output_tokens", name, False) for name, each in _named(series)], log_x=True,
        ))  # fmt: skip
        charts.insert(1, _chart(
            "Time to first token", label, "TTFT p50 (ms)",
            [(each, "value", "ttft_p50", name, False) for name, each in _named(series)], log_x=True,
        ))  # fmt: skip
    else:
        charts.append(_chart(
            "Goodput against rate", label, "good requests/s",
            [(each, x, "goodput", name, False) for name, each in _named(series)],
            note="Requests a second that kept the SLO; failures did not.",
        ))  # fmt: skip
    charts.append(_chart(
        "Tokens for a dollar", label, "output tokens/$",
        [(each, x, "tokens_per_dollar", name, False) for name, each in _named(series)], log_x=closed,
    ))  # fmt: skip
    return charts


def _against_tokens(series: list[Series]) -> list[Chart]:
    """Hex-LLM's pair of plots: throughput and time per token, over the offered prompt tokens per second."""
    return [
        _chart(
            "Throughput against offered tokens",
            "offered prompt tokens/s",
            "output tokens/s",
            [(each, "offered_prompt_tokens", "output_tokens", name, False) for name, each in _named(series)],
        ),
        _chart(
            "Normalized latency against offered tokens",
            "offered prompt tokens/s",
            "ms per output token",
            [(each, "offered_prompt_tokens", "normalized_mean", name, False) for name, each in _named(series)],
            note="Whole time from the schedule over output tokens, mean: queueing is in it.",
        ),
    ]


def _named(series: list[Series]) -> list[tuple[str, Series]]:
    return [(each["name"] if len(series) > 1 else "", each) for each in series]


def _chart(
    title: str, x: str, y: str, wanted: list[tuple[Series, str, str, str, bool]], note: str = "", log_x: bool = False
) -> Chart:
    colours: dict[int, int] = {}
    lines = []
    for each, key_x, key_y, name, dashed in wanted:
        colour = colours.setdefault(id(each), len(colours))
        lines.append(Line(name.strip() or y, _points(each, key_x, key_y), colour, dashed))
    return Chart(title, x, y, tuple(lines), note, log_x=log_x)


def _points(series: Series, key_x: str, key_y: str) -> list[tuple[float, float, float]]:
    points = []
    for point in sorted(series["points"], key=lambda each: float(each["value"])):  # throughput may fall at high load
        x = point["value"] if key_x == "value" else _figure(point, key_x)[0]
        y, half = _figure(point, key_y)
        points.append((x, y, half))
    return points


def _figure(point: dict[str, Any], key: str) -> tuple[float, float]:
    mean, half = point["figures"].get(key, (None, None))
    return (math.nan if mean is None else float(mean)), (math.nan if half is None else float(half))


# ---- one run ------------------------------------------------------------------------------------------------------


def of_runs(named: list[tuple[str, dict[str, Any]]]) -> list[Chart]:
    """Distributions of one or several runs in one chart each; for one run also its time lines."""
    charts = [
        _cdf("Time to first token", "ttft", named, log=True),
        _cdf("Time per output token", "tpot", named, log=False),
        _cdf("Gaps between chunks", "gaps", named, log=True),
        _cdf("Whole answer", "e2e", named, log=True),
    ]
    return charts + (_timeline(named[0][1]) if len(named) == 1 else [])


def _cdf(title: str, key: str, named: list[tuple[str, dict[str, Any]]], log: bool) -> Chart:
    lines = []
    for colour, (name, run) in enumerate(named):
        cdf = run["curves"]["cdf"]
        twice = key == "ttft" and len(named) == 1 and cdf["ttft"] != cdf["ttft_from_sent"]
        lines.append(Line("from the schedule" if twice else name, _flip(cdf[key]), colour, dots=False, steps=True))
        if twice:
            lines.append(Line("from the send", _flip(cdf["ttft_from_sent"]), 1, True, dots=False, steps=True))
    note = "Share of requests; failed ones are missing at the top." if key != "gaps" else "Share of all gaps."
    return Chart(title, "milliseconds", "share", tuple(lines), note, log_x=log)


def _flip(cdf: list[list[float]]) -> list[tuple[float, float]]:
    return [(value * 1e3, share) for share, value in cdf]


def _timeline(run: dict[str, Any]) -> list[Chart]:
    time = run["curves"]["time"]
    steady = run["throughput"]["steady"]
    markers = tuple(
        (float(steady[key]), text) for key, text in (("start", "steady from"), ("end", "to")) if steady[key] is not None
    )
    flying = [Line("in flight", time["in_flight"], 0, dots=False, steps=True)]
    if time["replicas"]:
        flying.append(Line("replicas", time["replicas"], 1, True, dots=False, steps=True))
    late = [(at, value * 1e3) for at, value in time["late"]]
    waits = [(at, value * 1e3) for at, value in time["ttft"]]
    return [
        Chart("In flight", "time (s)", "requests", tuple(flying), markers=markers),
        Chart("Output", "time (s)", "tokens/s", (Line("tokens", time["output_tokens_per_s"], 2, dots=False),)),
        Chart(
            "TTFT by arrival", "time of the schedule (s)", "TTFT (ms)", (Line("TTFT", waits, 0, line=False),),
            "Each dot is a request. A slope to the right is a queue that grows.",
        ),
        Chart(
            "Schedule lag", "time of the schedule (s)", "sent after schedule (ms)",
            (Line("lag", late, 3, line=False),), "The client's own delay. It belongs to no server.",
        ),
    ]  # fmt: skip
