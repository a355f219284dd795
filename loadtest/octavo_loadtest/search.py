"""Searches: sweeps with stop rules, the capacity under an SLO, and the bend of a curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.figures import lookup
from octavo_loadtest.slo import Slo
from octavo_loadtest.stats import knee

Point = dict[str, Any]


def geometric(start: float, end: float, steps: int) -> list[float]:
    """`steps` values from start to end with equal ratios, rounded to three digits; equal ones once.

    Raises:
        LoadTestError: there are no such values.
    """
    if not (0 < start < math.inf and 0 < end < math.inf and steps > 0):
        raise LoadTestError(
            f"rates go from one above 0 to another in 1 step or more, not {start:g} to {end:g} in {steps}"
        )
    return list(dict.fromkeys(float(f"{value:.3g}") for value in np.geomspace(start, end, steps)))


def doubling(start: int, end: int) -> list[int]:
    """start, 2*start, ... up to end.

    Raises:
        LoadTestError: they are not above 0.
    """
    if start < 1 or end < 1:
        raise LoadTestError(f"numbers of sessions at once are 1 or more, not {start} to {end}")
    return [start << i for i in range(max(0, int(math.log2(end / start))) + 1)]


def stop_reason(points: list[Point], bound: Slo | None, least_gain: float) -> str | None:
    """Why a sweep can stop: the latency bound is exceeded, or throughput no longer rises; None to continue.

    The two rules of the sizing guides. The bound is held against the median of each measure in the last point.
    """
    last = points[-1]
    if bound is not None:
        for key, limit in bound.bounds.items():
            seen = lookup(last["runs"][0], ("latency", key, "headline", "p50"))
            if seen > limit:
                return f"latency bound: median {key} {seen * 1e3:.0f} ms at {last['name']} is over {limit * 1e3:.0f} ms"
    if len(points) > 1:
        best = max(_throughput(point) for point in points[:-1])
        if _throughput(last) < best * (1 + least_gain):
            return f"throughput stopped rising: {_throughput(last):.1f}/s at {last['name']} after {best:.1f}"
    return None


def _throughput(point: Point) -> float:
    """Output tokens a second, or requests where answers have none; NaN where nothing was answered."""
    values = [_number(point, key) for key in ("output_tokens", "requests")]
    return next((value for value in values if not math.isnan(value)), math.nan)


def _number(point: Point, key: str) -> float:
    """A figure of a point; NaN where it has none: one request has no rate."""
    value = point["figures"][key][0]
    return math.nan if value is None else float(value)


def saturation_point(points: list[Point]) -> dict[str, Any]:
    """Where a rate sweep saturates: the largest rate still served, the most throughput, and the bend of the curve."""
    offered, done = (np.array([_number(point, key) for point in points]) for key in ("offered", "requests"))
    tokens = np.array([_throughput(point) for point in points])
    kept = [
        point["value"]
        for point in points
        if _number(point, "requests") >= 0.9 * _number(point, "offered")
        and not any(run["saturation"]["rising"] for run in point["runs"])
    ]
    order = np.argsort(offered)
    what = "requests" if points[0]["figures"]["output_tokens"][0] is None else "output_tokens"
    return {
        "last_rate_kept": max(kept, default=None),
        f"peak_{what}_per_s": max((float(each) for each in tokens if not math.isnan(each)), default=math.nan),
        "knee_requests_per_s": knee(offered[order], done[order]) if np.isfinite([offered, done]).all() else None,
    }


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried."""

    rate: float
    verdict: str  # passed | failed | unresolved
    met: bool  # judged by the observed share alone


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate that met the SLO and the lowest that did not; None if there was none."""

    low: float | None
    high: float | None
    probes: tuple[Probe, ...]

    @property
    def unresolved(self) -> tuple[float, ...]:
        return tuple(probe.rate for probe in self.probes if probe.verdict == "unresolved")


def capacity(probe: Callable[[float], Probe], start: float, precision: float = 0.1, most: int = 12) -> Capacity:
    """Double the rate until the SLO is missed (or halve until it is met), then bisect to a relative `precision`.

    An unresolved probe is judged by its observed share, so that the search continues; it is reported as unresolved.

    Raises:
        LoadTestError: no probe is allowed, or no width ends the search.
    """
    if most < 1 or not precision > 0:
        raise LoadTestError(f"a search needs a probe or more and a precision above 0, not {most} and {precision:g}")
    probes: list[Probe] = []
    low: float | None = None
    high: float | None = None
    rate = start
    while len(probes) < most:
        probes.append(probe(rate))
        low, high = (rate, high) if probes[-1].met else (low, rate)
        if low is not None and high is not None and high - low <= precision * low:
            break
        rate = _next(low, high)
    return Capacity(low, high, tuple(probes))


def _next(low: float | None, high: float | None) -> float:
    if high is None:
        return 2 * (low or 0.0)
    return high / 2 if low is None else (low + high) / 2
