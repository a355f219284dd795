"""The statistics behind every figure: small functions over arrays, independent of load tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.dependence import worth

Floats = NDArray[np.float64]

# Student's t, two-sided 95 %, for 1..30 degrees of freedom; beyond that the normal quantile is within 2 %
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def quantile(values: Floats, share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (NaN for none).

    There is no interpolation, because failures count as infinite.
    """
    if not len(values):
        return math.nan
    return float(np.sort(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)])


@lru_cache(maxsize=4096)
def misses_allowed(count: int, share: float, confidence: float = 0.99) -> int:
    """How many of `count` requests may exceed a bound that still holds for `share` of all requests; -1 if none may.

    The largest t with P[Binomial(count, 1 - share) <= t] <= 1 - confidence: 0 needs 459 requests for p99, 1 needs
    662; the numbers of MLPerf's early stopping (LoadGen, tolerance 0).
    """
    budget, miss = 1.0 - confidence, 1.0 - share
    total, allowed = 0.0, -1
    for t in range(count + 1):
        log_term = math.lgamma(count + 1) - math.lgamma(t + 1) - math.lgamma(count - t + 1)
        total += math.exp(log_term + t * math.log(miss) + (count - t) * math.log1p(-miss))
        if total > budget:
            break
        allowed = t
    return allowed


LEAST = 25
"""Independent requests that dependent ones must be worth before anything bounds them: below that, tau is a guess."""


def upper_bound(values: Floats, share: float, confidence: float = 0.99) -> float:
    """A value that the true quantile does not exceed, with this confidence, for any distribution.

    `values` come in the order in which their requests became due. NaN: so few requests bound nothing. Infinite: as many
    would, but these depend on each other so much that no value does; a longer run has one.

    An order statistic: where t misses are allowed it is the (t+1)-th largest value. (MLPerf's estimate takes the t-th
    largest, so it wants 662 requests for a p99 where this wants 459.) Dependent requests are allowed the share of
    misses that the independent ones are allowed which they are worth.
    """
    if misses_allowed(len(values), share, confidence) < 0:
        return math.nan
    independent = worth(values)
    allowed = misses_allowed(int(independent), share, confidence)
    if allowed < 0 or (independent < len(values) and independent < LEAST):
        return math.inf
    return float(np.sort(values)[len(values) - 1 - int(allowed * len(values) / int(independent))])


def wilson(good: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (E. B. Wilson, 1927); (0, 1) for no trials.

    The trials are independent. For dependent ones both numbers are scaled to what these are worth.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = good / total
    centre = share + z * z / (2 * total)
    margin = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def t95(degrees: int) -> float:
    """Student's t quantile for a two-sided 95 % interval."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a few repeats and the half width of its 95 % interval (NaN for fewer than two)."""
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan
    return mean, t95(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def ks_distance(sample: Floats, other: Floats) -> float:
    """Largest distance between two empirical distributions (two-sample Kolmogorov-Smirnov)."""
    a, b = np.sort(sample), np.sort(other)
    grid = np.concatenate([a, b])
    return float(
        np.max(
            np.abs(np.searchsorted(a, grid, side="right") / len(a) - np.searchsorted(b, grid, side="right") / len(b))
        )
    )


def ks_to_cdf(sample: Floats, cdf: Floats) -> float:
    """Largest distance between a sample and a continuous law; `cdf` holds the law's CDF at each sample, same order."""
    at = np.sort(cdf)
    n = len(sample)
    return float(max(np.max(np.arange(1, n + 1) / n - at), np.max(at - np.arange(n) / n)))


def ks_critical(n: int, m: int | None = None, alpha: float = 0.01) -> float:
    """Distance that two equal laws exceed with probability `alpha` (Smirnov's asymptotic form; m=None: one sample)."""
    size = n if m is None else n * m / (n + m)
    return math.sqrt(-math.log(alpha / 2) / 2 / size)


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares slope and the half width of its 95 % interval."""

    value: float
    margin: float

    @property
    def rises(self) -> bool:
        """Whether the slope is above zero with 95 % confidence."""
        return self.value - self.margin > 0


def slope(x: Floats, y: Floats) -> Slope:
    """Slope of y over x; NaN with fewer than three points or no spread."""
    if len(x) < 3 or np.ptp(x) == 0:
        return Slope(math.nan, math.nan)
    centred = x - x.mean()
    spread = float(centred @ centred)
    value = float(centred @ y) / spread
    rest = y - y.mean() - value * centred
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / spread)
    return Slope(value, t95(len(x) - 2) * error)


def knee(x: Floats, y: Floats) -> float | None:
    """Where a curve bends: x of the crossing of the best two-segment linear fit; None below four points.

    Every split into two runs of at least two points is tried; the one with the smallest squared error wins.
    """
    if len(x) < 4:
        return None
    best: tuple[float, float] | None = None
    for split in range(2, len(x) - 1):
        (a, b), left = _line(x[:split], y[:split])
        (c, d), right = _line(x[split:], y[split:])
        crossing = (d - b) / (a - c) if a != c else math.nan
        if x[0] <= crossing <= x[-1] and (best is None or left + right < best[0]):
            best = left + right, crossing
    return None if best is None else best[1]


def _line(x: Floats, y: Floats) -> tuple[tuple[float, float], float]:
    a, b = np.polyfit(x, y, 1)
    return (float(a), float(b)), float(np.sum((y - a * x - b) ** 2))
