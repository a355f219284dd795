from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.curves import BINS, LEVELS, cumulative, curves, level, per_second, thin
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.metrics import DEFINITIONS, derive

Simulate = Callable[..., tuple[Run, Any]]


def test_a_distribution_ends_where_failures_begin() -> None:
    assert cumulative(np.array([3.0, 1.0, math.inf, 2.0])) == [[0.25, 1], [0.5, 2], [0.75, 3]]
    assert cumulative(np.array([math.nan])) == []
    assert len(cumulative(np.arange(10_000.0))) == LEVELS


def test_a_level_is_the_largest_of_each_bin() -> None:
    assert level(np.empty(0), np.empty(0)) == []
    line = level(np.array([0.0, 10.0, 10.1, 150.0]), np.array([1.0, 5.0, 2.0, 0.0]))
    assert len(line) == BINS
    values = dict(map(tuple, line))
    assert (values[0.0], values[10.0], values[11.0], values[100.0]) == (1, 5, 2, 2)


def test_a_rate_keeps_every_token() -> None:
    times = np.linspace(0, 10, 101)
    line = per_second(times, np.ones(101))
    assert len(line) == 10
    assert sum(rate for _, rate in line) == pytest.approx(101)
    assert per_second(np.empty(0), np.empty(0)) == []


def test_points_are_thinned_and_finite() -> None:
    values = np.arange(5000.0)
    values[::2] = math.inf
    points = thin(np.arange(5000.0), values)
    assert 500 <= len(points) <= 700
    assert all(math.isfinite(value) for _, value in points)


def test_what_was_never_sent_is_in_no_curve(simulated: Simulate) -> None:
    load = Load(scale=0.02, arrivals="constant", rate=10, requests=40, warmup=0, concurrency=1, drain=0.5)
    run, _ = simulated(load, ttft=0.5, itl=0.0)
    assert any(record.sent is None for record in run.records)
    found = curves(run.records, derive(run.records, DEFINITIONS["octavo"]), [(0.0, 1), (1.0, None)])
    assert found["time"]["replicas"] == [[0.0, 1], [1.0, None]]
    assert found["cdf"]["ttft"][-1][0] < 0.5  # the rest got no answer
    assert max(count for _, count in found["time"]["in_flight"]) <= 2  # one begins as another ends
    assert len(found["time"]["late"]) < 40


VALUES = st.lists(st.floats(0, 1e4) | st.just(math.inf) | st.just(math.nan), max_size=300).map(np.array)


@given(VALUES)
def test_a_distribution_rises_to_what_was_answered(values: Any) -> None:
    line = cumulative(values)
    known = values[~np.isnan(values)]
    assert [share for share, _ in line] == sorted({share for share, _ in line})
    assert [value for _, value in line] == sorted(value for _, value in line)
    if np.isfinite(known).any():
        assert line[0][1] == pytest.approx(known.min(), rel=1e-4)
        assert line[-1][0] <= np.isfinite(known).mean() + 1e-12
    if len(known) <= LEVELS:
        assert len(line) == np.isfinite(known).sum()


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 9)), min_size=1, max_size=60))
def test_no_bin_of_a_level_is_below_what_it_holds(points: list[tuple[float, int]]) -> None:
    times, values = map(np.array, zip(*sorted(points), strict=True))
    line = level(times.astype(float), values.astype(float))
    assert len(line) == BINS
    assert max(value for _, value in line) <= values.max()
    inside = times < times[-1]
    if inside.any():
        assert max(value for _, value in line) >= values[inside].max()


@given(st.lists(st.floats(0, 500), min_size=1, max_size=200))
def test_rates_times_their_bins_are_all_tokens(times: list[float]) -> None:
    at = np.sort(np.array(times))
    line = per_second(at, np.full(len(at), 3.0))
    assert len(line) <= BINS
    width = (at[-1] - at[0]) / len(line) if at[-1] > at[0] else 1.0
    if width > 1e-3:
        assert sum(rate for _, rate in line) * width == pytest.approx(3 * len(at), rel=1e-3)
