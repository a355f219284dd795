"""Data for plots, reduced to what is visible. It is stored in the JSON, so a report needs no records."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.metrics import Measures, in_flight, token_times
from octavo_loadtest.record import Record

Floats = NDArray[np.float64]
LEVELS = 120  # points of a distribution
BINS = 150  # of a time line


def curves(records: list[Record], measures: Measures, replicas: list[tuple[float, int | None]]) -> dict[str, Any]:
    """Distributions as [[share, seconds]...] and time lines as [[seconds, value]...]."""
    headline = measures.headline()
    late = measures.late
    return {
        "cdf": {
            "ttft": cumulative(headline["ttft"]),
            "ttft_from_sent": cumulative(measures.latency["from_sent"]["ttft"]),
            "tpot": cumulative(headline["tpot"]),
            "gaps": cumulative(measures.gaps),
            "e2e": cumulative(headline["e2e"]),
            "late": cumulative(late),
        },
        "time": {
            "in_flight": level(*in_flight(measures.sent, measures.end)),
            "output_tokens_per_s": per_second(*token_times(records)),
            "ttft": thin(measures.scheduled, headline["ttft"]),
            "late": thin(measures.scheduled, late),
            "replicas": [[at, count] for at, count in replicas],
        },
    }


def cumulative(values: Floats) -> list[list[float]]:
    """[share, value] of a distribution; failed requests are left out at its top."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return []
    ranks = np.unique(np.linspace(0, len(known) - 1, LEVELS).round().astype(int))
    return [[(rank + 1) / len(known), _round(known[rank])] for rank in ranks.tolist() if math.isfinite(known[rank])]


def level(times: Floats, values: Floats) -> list[list[float]]:
    """The largest value in each bin of time."""
    if not len(times):
        return []
    edges = np.linspace(times[0], times[-1], BINS + 1)
    held = values[np.clip(np.searchsorted(times, edges, side="right") - 1, 0, None)]
    line = []
    for i in range(BINS):
        inside = values[np.searchsorted(times, edges[i]) : np.searchsorted(times, edges[i + 1])]
        line.append([_round(edges[i]), float(max(held[i], inside.max(initial=0)))])
    return line


def per_second(times: Floats, tokens: Floats) -> list[list[float]]:
    """Rate of tokens (1/s), in bins of at least a second."""
    if not len(times):
        return []
    span = float(times[-1] - times[0])
    count = max(1, min(BINS, int(span)))
    totals, edges = np.histogram(times, bins=count, weights=tokens)
    width = float(edges[1] - edges[0])
    return [[_round(at + width / 2), _round(total / width)] for at, total in zip(edges, totals, strict=False)]


def thin(times: Floats, values: Floats) -> list[list[float]]:
    """At most 600 of the finite points."""
    kept = np.flatnonzero(np.isfinite(values))
    kept = kept[:: max(1, len(kept) // 600)]
    return [[_round(times[i]), _round(values[i])] for i in kept]


def _round(value: float) -> float:
    return float(f"{value:.5g}")
