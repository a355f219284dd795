"""Arrival times of requests. Every schedule is computed from a seed before the run, in seconds from its start.

An absolute schedule cannot drift. Sleeping after each send would add the client's overhead to every gap, so a slow
client would offer less load than intended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.errors import LoadTestError

Floats = NDArray[np.float64]
Generator = np.random.Generator


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A named law with its parameters, written `NAME` or `NAME:key=value,key=value`."""

    name: str
    options: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        listed = ",".join(f"{key}={value:g}" for key, value in self.options.items())
        return f"{self.name}:{listed}" if listed else self.name

    @property
    def closed(self) -> bool:
        """Whether a new request waits for an old one to finish (closed loop), so that there is no schedule."""
        return self.name in ("closed", "batch")


def parse(text: str) -> Arrivals:
    """Read `gamma:cv=2`.

    Raises:
        LoadTestError: no such law, or a value that is not a number.
    """
    name, _, rest = text.partition(":")
    if name not in LAWS and name not in ("closed", "batch", "replay", "workload"):
        raise LoadTestError(f"no arrivals called {name!r}; there are {', '.join([*LAWS, *_UNSCHEDULED])}")
    options: dict[str, float] = {}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            raise LoadTestError(f"arrivals {text!r}: {pair!r} should be key=number") from None
    return Arrivals(name, options)


_UNSCHEDULED = ("closed", "batch", "replay", "workload")


def times(arrivals: Arrivals, count: int, rate: float, rng: Generator) -> Floats:
    """The first `count` arrival times (s, ascending) of a law with this mean rate (1/s).

    Raises:
        LoadTestError: a rate that is not positive, or options that the law does not have.
    """
    if not (rate > 0 and math.isfinite(rate)):
        raise LoadTestError(f"the rate must be above 0 requests/s, not {rate:g}")
    try:
        return LAWS[arrivals.name](count, rate, rng, **arrivals.options)
    except (TypeError, ValueError):
        raise LoadTestError(f"arrivals {arrivals} has an option that {arrivals.name!r} does not know") from None


def constant(count: int, rate: float, rng: Generator) -> Floats:
    """Equal gaps."""
    return np.arange(count) / rate


def poisson(count: int, rate: float, rng: Generator, rescale: float = 0.0) -> Floats:
    """Independent exponential gaps.

    rescale=1 scales them so that the last arrival is at count/rate, as `vllm bench serve` does. The rate then has no
    noise, but the process is not Poisson any more.
    """
    at = np.cumsum(rng.exponential(1 / rate, count))
    return at * (count / rate / at[-1]) if rescale else at


def gamma(count: int, rate: float, rng: Generator, cv: float = 2.0) -> Floats:
    """Gamma gaps with a coefficient of variation: 1 is Poisson, 2..4 are bursts, 10 is extreme."""
    shape = 1 / cv**2
    return np.cumsum(rng.gamma(shape, 1 / (rate * shape), count))


def onoff(count: int, rate: float, rng: Generator, size: float = 62.0, duty: float = 0.23) -> Floats:
    """Bursts of geometric size (mean `size`), Poisson inside, silence between; `duty` is the share of time they fill.

    The defaults are Azure's code completion trace of 2023: 62 requests at 11/s, gaps of 19 s.
    """
    inside = rate / duty
    off_mean = size / rate * (1 - duty)
    gaps = rng.exponential(1 / inside, count)
    starts = rng.random(count) < 1 / size
    return np.cumsum(gaps + np.where(starts, rng.exponential(off_mean, count), 0.0))


def ramp(count: int, rate: float, rng: Generator, start: float = 0.1, end: float = 1.9) -> Floats:
    """Poisson arrivals whose rate runs linearly from start*rate to end*rate over the whole run."""
    return piecewise(count, rng, [(0.0, start * rate), (count / (rate * (start + end) / 2), end * rate)])


def step(count: int, rate: float, rng: Generator, factor: float = 4.0, at: float = 0.4, share: float = 0.2) -> Floats:
    """Poisson arrivals at `rate`, times `factor` for a `share` of the run that starts at `at` (both in 0..1)."""
    length = count / (rate * (1 + (factor - 1) * share))
    up, down = at * length, (at + share) * length
    points = [(0.0, rate), (up, rate), (up, factor * rate), (down, factor * rate), (down, rate), (length, rate)]
    return piecewise(count, rng, points)


def rates(count: int, rate: float, rng: Generator, **points: float) -> Floats:
    """Poisson arrivals whose rate is linear between second=factor points, as in `rates:0=1,30=4,60=1`.

    Factors are of `rate`; the last one stays.
    """
    listed = sorted((float(second), factor * rate) for second, factor in (points or {"0": 1.0}).items())
    if listed[0][0] != 0 or min(value for _, value in listed) < 0 or listed[-1][1] == 0:
        raise LoadTestError("rates need a point at second 0, no factor below 0, and a last one above 0")
    return piecewise(count, rng, listed)


def piecewise(count: int, rng: Generator, points: list[tuple[float, float]]) -> Floats:
    """Poisson arrivals whose rate is linear between (time, rate) points and stays at the last one.

    The unit-rate process is mapped through the inverse of the cumulative rate (Cinlar, 1975). Points may share a time:
    that is a jump.
    """
    t, r = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    total = np.concatenate([[0.0], np.cumsum(np.diff(t) * (r[1:] + r[:-1]) / 2)])
    unit = np.cumsum(rng.exponential(1.0, count))
    at = np.empty(count)
    for i, mass in enumerate(unit):
        k = int(np.searchsorted(total, mass, side="right")) - 1
        at[i] = t[k] + _time_for(mass - total[k], r[k], _growth(t, r, k))
    return at


def _growth(t: Floats, r: Floats, k: int) -> float:
    return 0.0 if k + 1 == len(t) else float((r[k + 1] - r[k]) / (t[k + 1] - t[k]))


def _time_for(mass: float, rate: float, growth: float) -> float:
    """The x with rate*x + growth*x^2/2 = mass, in the form that stays exact as growth goes to 0."""
    root = math.sqrt(max(0.0, rate * rate + 2 * growth * mass))
    return 2 * mass / (rate + root) if mass > 0 else 0.0


LAWS: dict[str, Callable[..., Floats]] = {
    law.__name__: law for law in (constant, poisson, gamma, onoff, ramp, step, rates)
}
