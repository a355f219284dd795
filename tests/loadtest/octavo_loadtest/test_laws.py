"""Length laws: what is drawn follows what is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.laws import draw, log_parameters

LEVELS = np.array([0.0, 0.5, 1.0])
COUNT = 20_000


def drawn(law: dict[str, Any]) -> Any:
    return draw(law, LEVELS, COUNT, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("law", "low", "median", "high"),
    [
        ({"constant": 7}, 7, 7, 7),
        ({"uniform": [10, 30]}, 10, 20, 30),
        ({"quantiles": [0, 10, 100]}, 0, 10, 100),
        ({"lognormal": {"median": 50, "sigma": 1.0, "min": 10, "max": 200}}, 10, 50, 200),
    ],
)
def test_values_keep_their_median_and_their_bounds(law: dict[str, Any], low: float, median: float, high: float) -> None:
    values = drawn(law)
    assert len(values) == COUNT
    assert low <= values.min() <= values.max() <= high
    assert np.median(values) == pytest.approx(median, rel=0.1)


def test_a_mixture_has_its_shares() -> None:
    values = drawn({"mixture": [[0.25, {"constant": 1}], [0.75, {"constant": 2}]]})
    assert (values == 1).mean() == pytest.approx(0.25, abs=0.02)
    assert set(values) == {1, 2}


def test_mean_and_deviation_give_the_same_law_as_their_moments() -> None:
    mu, sigma = log_parameters({"mean": 100.0, "sd": 60.0})
    assert np.exp(mu + sigma**2 / 2) == pytest.approx(100.0)
    assert np.exp(mu + sigma**2 / 2) * np.sqrt(np.expm1(sigma**2)) == pytest.approx(60.0)


def test_an_unknown_law_is_named() -> None:
    with pytest.raises(LoadTestError, match="no length law called 'zipf'"):
        drawn({"zipf": 2})
