"""Length laws as data: `{"quantiles": [...]}`, `{"lognormal": {...}}`, `{"uniform": [low, high]}`, mixtures of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.errors import LoadTestError

Floats = NDArray[np.float64]
Generator = np.random.Generator


def draw(law: dict[str, Any], levels: Floats, count: int, rng: Generator) -> Floats:
    """Draw `count` values from a law. `levels` are the shares at which quantile tables are given.

    Raises:
        LoadTestError: no such law.
    """
    (kind, given), *_ = law.items()
    if kind == "quantiles":
        return np.interp(rng.random(count), levels, np.array(given, dtype=np.float64))
    if kind == "constant":
        return np.full(count, float(given))
    if kind == "uniform":
        return rng.uniform(given[0], given[1], count)
    if kind == "lognormal":
        mu, sigma = log_parameters(given)
        return np.clip(rng.lognormal(mu, sigma, count), given["min"], given["max"])
    if kind == "mixture":
        columns = np.stack([draw(part, levels, count, rng) for _, part in given])
        chosen = rng.choice(len(given), count, p=[share for share, _ in given])
        return columns[chosen, np.arange(count)]
    raise LoadTestError(f"no length law called {kind!r}")


def log_parameters(given: dict[str, float]) -> tuple[float, float]:
    """mu and sigma of a log-normal given by median and sigma, or by mean and standard deviation (moments)."""
    if "median" in given:
        return math.log(given["median"]), given["sigma"]
    variance = math.log1p((given["sd"] / given["mean"]) ** 2)
    return math.log(given["mean"]) - variance / 2, math.sqrt(variance)
