from __future__ import annotations

import math

import numpy as np
import pytest

from octavo_loadtest import stats


@pytest.mark.parametrize(
    ("share", "misses", "least"), [(0.99, 0, 459), (0.99, 1, 662), (0.9, 0, 44), (0.9, 1, 64), (0.95, 0, 90)]
)
def test_misses_allowed_are_mlperfs_early_stopping(share: float, misses: int, least: int) -> None:
    assert stats.misses_allowed(least, share) == misses
    assert stats.misses_allowed(least - 1, share) == misses - 1


def test_upper_bound_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = -math.log(0.1)  # p90 of a unit exponential
    bounds = [stats.upper_bound(rng.exponential(size=200), 0.9) for _ in range(2000)]
    assert 0.985 <= np.mean(np.array(bounds) >= truth) <= 1.0
    assert math.isnan(stats.upper_bound(rng.exponential(size=458), 0.99))


def test_quantile_of_failures_is_infinite() -> None:
    values = np.array([1.0, 2.0, 3.0, math.inf])
    assert stats.quantile(values, 0.75) == 3.0
    assert stats.quantile(values, 0.76) == math.inf
    assert math.isnan(stats.quantile(np.empty(0), 0.5))


def test_wilson_interval() -> None:
    low, high = stats.wilson(9, 10)  # 0.596 to 0.982: Newcombe 1998, table I's method
    assert low == pytest.approx(0.5958, abs=1e-4)
    assert high == pytest.approx(0.9821, abs=1e-4)
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.wilson(10, 10)[1] == 1.0


def test_mean_interval_is_students() -> None:
    mean, half = stats.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(stats.mean_interval([1.0])[1])


def test_ks_tells_laws_apart() -> None:
    rng = np.random.default_rng(1)
    a, b, c = rng.exponential(size=800), rng.exponential(size=600), rng.exponential(1.5, size=600)
    assert stats.ks_distance(a, b) < stats.ks_critical(800, 600) < stats.ks_distance(a, c)
    assert stats.ks_to_cdf(a, 1 - np.exp(-a)) < stats.ks_critical(800) < stats.ks_to_cdf(c, 1 - np.exp(-c))


def test_slope_and_its_margin() -> None:
    x = np.arange(20.0)
    noise = np.random.default_rng(2).normal(size=20)
    assert stats.slope(x, 3 * x).value == pytest.approx(3)
    assert stats.slope(x, x + noise).rises
    assert not stats.slope(x, noise).rises
    assert math.isnan(stats.slope(np.ones(5), x[:5]).value)


def test_knee_is_where_two_lines_meet() -> None:
    x = np.arange(1.0, 11.0)
    assert stats.knee(x, np.minimum(x, 6.0)) == pytest.approx(6.0)
    assert stats.knee(x[:3], x[:3]) is None
