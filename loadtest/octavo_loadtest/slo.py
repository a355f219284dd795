"""Service level objectives: which requests count as good, and which share of them must be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo_loadtest.errors import LoadTestError

# Seconds. MLPerf: mlcommons/inference mlperf.conf at b66003e, Server scenario, p99 of each measure.
# interactive and batch: inference-perf's workload catalog (chat; RAG batch), Mooncake: its paper's TTFT and TBT.
NAMED: dict[str, dict[str, float]] = {
    "interactive": {"ttft": 1.0, "itl": 0.05},
    "batch": {"ttft": 15.0, "itl": 0.15, "e2e": 630.0},
    "mlperf-llama2-70b": {"ttft": 2.0, "tpot": 0.2},
    "mlperf-llama2-70b-interactive": {"ttft": 0.45, "tpot": 0.04},
    "mlperf-llama3.1-8b": {"ttft": 2.0, "tpot": 0.1},
    "mlperf-llama3.1-8b-interactive": {"ttft": 0.5, "tpot": 0.03},
    "mlperf-llama3.1-405b": {"ttft": 6.0, "tpot": 0.175},
    "mlperf-llama3.1-405b-interactive": {"ttft": 4.5, "tpot": 0.08},
    "mlperf-mixtral-8x7b": {"ttft": 2.0, "tpot": 0.2},
    "mlperf-deepseek-r1": {"ttft": 2.0, "tpot": 0.08},
    "mlperf-deepseek-r1-interactive": {"ttft": 1.5, "tpot": 0.015},
    "mlperf-gpt-oss-120b": {"ttft": 3.0, "tpot": 0.08},
    "mlperf-gpt-oss-120b-interactive": {"ttft": 2.0, "tpot": 0.02},
    "mooncake": {"ttft": 30.0, "itl": 0.2},
}
MEASURES = ("ttft", "visible", "tpot", "itl", "e2e", "normalized")


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds (s) by measure. A request is good if it was answered and keeps all of them."""

    name: str
    bounds: dict[str, float]

    def good(self, measured: dict[str, float]) -> bool:
        """Of one request. A measure that it does not have (one token has no gaps) cannot be broken."""
        return all(math.isnan(value := measured[key]) or value <= bound for key, bound in self.bounds.items())


def parse(text: str) -> Slo:
    """A name, or `ttft=0.5,tpot=0.05` in seconds.

    Raises:
        LoadTestError: no such name or measure.
    """
    if text in NAMED:
        return Slo(text, NAMED[text])
    bounds = {}
    for pair in text.split(","):
        key, _, value = pair.partition("=")
        try:
            bounds[key] = float(value)
            if not 0 < bounds[key] < math.inf:
                raise ValueError
        except ValueError:
            raise LoadTestError(
                f"no SLO {text!r}: give a name ({', '.join(NAMED)}) or bounds in seconds such as ttft=0.5,tpot=0.05"
            ) from None
        if key not in MEASURES:
            raise LoadTestError(f"an SLO can bound {', '.join(MEASURES)}, not {key!r}")
    return Slo(text, bounds)


def verdict(interval: tuple[float, float], target: float) -> str:
    """passed or failed where the interval of the share lies on one side of the target, else unresolved."""
    low, high = interval
    if low >= target:
        return "passed"
    return "failed" if high < target else "unresolved"
