from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import stats

NUMBERS = st.lists(st.integers(-50, 50).map(float) | st.just(math.inf), min_size=1, max_size=30)


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


@given(NUMBERS, st.integers(0, 1000))
def test_a_quantile_is_the_first_value_that_so_many_do_not_exceed(values: list[float], per_mille: int) -> None:
    found = stats.quantile(np.array(values), per_mille / 1000)
    assert found in values
    assert Fraction(sum(value <= found for value in values), len(values)) >= Fraction(per_mille, 1000)
    if smaller := [value for value in values if value < found]:
        assert Fraction(len(smaller), len(values)) < Fraction(per_mille, 1000)


@given(st.integers(1, 80), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from([0.9, 0.99]))
def test_misses_allowed_are_the_binomials(count: int, share: float, confidence: float) -> None:
    miss = Fraction(share).limit_denominator(100)
    terms = [math.comb(count, t) * (1 - miss) ** t * miss ** (count - t) for t in range(count + 1)]
    budget = 1 - Fraction(confidence).limit_denominator(100)
    allowed = [t for t in range(count + 1) if sum(terms[: t + 1]) <= budget]
    assert stats.misses_allowed(count, share, confidence) == max(allowed, default=-1)


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_share_is_in_its_interval(good: int, bad: int) -> None:
    total = good + bad
    low, high = stats.wilson(good, total)
    assert 0 <= low <= good / total + 1e-12 < high <= 1
    assert high - low > 1e-3
    mirrored = stats.wilson(bad, total)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    longer = stats.wilson(4 * good, 4 * total)
    assert longer[1] - longer[0] < high - low
    wider = stats.wilson(good, total, 0.99)
    assert wider[0] <= low + 1e-12 <= high <= wider[1] + 1e-12


@given(NUMBERS, NUMBERS)
def test_the_distance_of_two_samples(one: list[float], other: list[float]) -> None:
    a, b = np.array(one), np.array(other)
    found = stats.ks_distance(a, b)
    shares = [(np.mean(a <= at), np.mean(b <= at)) for at in [*one, *other]]
    assert found == pytest.approx(max(abs(x - y) for x, y in shares))
    assert stats.ks_distance(b, a) == pytest.approx(found)
    assert stats.ks_distance(np.exp(a / 50), np.exp(b / 50)) == pytest.approx(found)  # only the order matters


def test_a_sample_on_its_law_and_beside_it() -> None:
    at = (np.arange(10) + 0.5) / 10
    assert stats.ks_to_cdf(at, at) == pytest.approx(0.05)
    assert stats.ks_to_cdf(at[::-1], np.zeros(10)) == 1.0
    assert stats.ks_to_cdf(at, np.ones(10)) == 1.0
    assert stats.ks_critical(100) == pytest.approx(1.6276 / 10, rel=1e-3)  # Smirnov's table, 1 %
    assert stats.ks_critical(100, 100) == pytest.approx(math.sqrt(2) * stats.ks_critical(100))


def test_students_t_ends_in_the_normal_law() -> None:
    found = [stats.t95(degrees) for degrees in range(1, 40)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[29], found[30]) == (12.706, 2.042, 1.96)


def test_a_mean_of_nothing_and_of_failures() -> None:
    assert all(map(math.isnan, stats.mean_interval([])))
    mean, half = stats.mean_interval([1.0, math.inf])
    assert (mean, math.isnan(half)) == (math.inf, True)


@given(st.lists(st.integers(-100, 100).map(float), min_size=4, max_size=20), st.integers(-5, 5))
def test_a_slope_is_that_of_least_squares(values: list[float], tilt: int) -> None:
    x, y = np.arange(len(values)), np.array(values)
    found = stats.slope(x.astype(float), y)
    assert found.value == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-9)
    tilted = stats.slope(x.astype(float), y + tilt * x)
    assert (tilted.value, tilted.margin) == pytest.approx((found.value + tilt, found.margin), abs=1e-6)


def test_two_points_and_a_level_rise_nowhere() -> None:
    assert not stats.slope(np.array([0.0, 1.0]), np.array([0.0, 9.0])).rises
    level = stats.slope(np.arange(5.0), np.ones(5))
    assert (level.value, level.margin, level.rises) == (0.0, 0.0, False)


@given(st.integers(2, 7), st.floats(0.1, 10), st.floats(1, 1000))
def test_a_knee_moves_with_its_axes(bend: int, scale: float, height: float) -> None:
    x = np.arange(1.0, 11.0)
    y = np.where(x < bend + 0.5, x, bend + 0.5 + 0.1 * (x - bend - 0.5))
    found = stats.knee(scale * x, height * y)
    assert found == pytest.approx(scale * (bend + 0.5), rel=1e-6)


def test_what_does_not_bend_has_no_knee() -> None:
    assert stats.knee(np.arange(6.0), np.zeros(6)) is None
