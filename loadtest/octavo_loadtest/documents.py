"""What is particular to embeddings: an answer is whole, has no tokens, and takes as long as its text is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo_loadtest.metrics import Measures
from octavo_loadtest.record import Record
from octavo_loadtest.stats import misses_allowed, quantile

CLASSES = 32, 128, 512, 2048, math.inf
"""Most tokens of a text of each class of lengths."""


def add(summary: dict[str, Any], records: list[Record], measures: Measures) -> None:
    """Put latencies by length into a summary, and take out what only text has."""
    for window in summary["throughput"].values():
        window["output_tokens_per_s"] = window["peak_output_tokens_per_s"] = math.nan
    tokens = np.array([record.planned_prompt_tokens for record in records])
    seconds = measures.headline()["e2e"]
    bounds = list(zip((0, *CLASSES[:-1]), CLASSES, strict=True))
    inside = {_named(low, high): (tokens > low) & (tokens <= high) for low, high in bounds}
    summary["by_length"] = [
        {"tokens": name, "sent": int(kept.sum()), "failed": int((kept & ~measures.ok).sum())}
        | {key: _percentile(seconds[kept], share) for key, share in (("p50_s", 0.5), ("p99_s", 0.99))}
        for name, kept in inside.items()
        if kept.any()
    ]


def _named(low: float, high: float) -> str:
    return f"over {low}" if math.isinf(high) else f"{low + 1:.0f} to {high}"


def _percentile(seconds: Any, share: float) -> float | None:
    """From the schedule; None where too few texts bound it."""
    return quantile(seconds, share) if misses_allowed(len(seconds), share) >= 0 else None


def table(run: dict[str, Any]) -> list[list[str]]:
    """Latencies by length as rows, a head first; nothing for a run without embeddings."""
    if "by_length" not in run:
        return []
    rows = [[row["tokens"], str(row["sent"]), str(row["failed"]), _ms(row["p50_s"]), _ms(row["p99_s"])]
            for row in run["by_length"]]  # fmt: skip
    return [["tokens of a text", "sent", "failed", "E2E p50 (ms)", "E2E p99 (ms)"], *rows]


def _ms(seconds: float | str | None) -> str:
    if seconds is None:
        return "–"
    return "∞" if math.isinf(float(seconds)) else f"{float(seconds) * 1e3:.1f}"
