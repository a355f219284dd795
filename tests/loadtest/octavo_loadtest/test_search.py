from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import search, slo
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.search import Probe


@given(st.floats(0.1, 500), st.floats(0.1, 100))
def test_capacity_brackets_the_truth(truth: float, start: float) -> None:
    found = search.capacity(lambda rate: Probe(rate, "passed", rate <= truth), start, precision=0.1, most=40)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= truth <= found.high <= found.low * 1.1001


def test_capacity_gives_up_and_says_what_was_unresolved() -> None:
    found = search.capacity(lambda rate: Probe(rate, "unresolved", True), 1.0, most=3)
    assert (found.low, found.high, found.unresolved) == (4.0, None, (1.0, 2.0, 4.0))


def point(value: float, tokens: float, ttft: float = 0.1, done: float | None = None) -> dict[str, Any]:
    figures = {"output_tokens": [tokens, None], "offered": [value, None], "requests": [done or value, None]}
    run = {"latency": {"ttft": {"headline": {"p50": ttft}}}, "saturation": {"rising": done is not None}}
    return {"name": f"{value:g}", "value": value, "figures": figures, "runs": [run]}


def test_both_stop_rules() -> None:
    bound = slo.parse("ttft=1")
    rising = [point(16, 100), point(32, 180)]
    assert search.stop_reason(rising, bound, 0.02) is None
    assert "stopped rising" in (search.stop_reason([*rising, point(64, 181)], bound, 0.02) or "")
    assert "latency bound" in (search.stop_reason([*rising, point(64, 300, ttft=1.5)], bound, 0.02) or "")


def test_saturation_is_where_the_rate_is_no_longer_kept() -> None:
    points = [point(r, 10 * min(r, 5), done=None if r <= 5 else 5.0) for r in (1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 12.0)]
    found = search.saturation_point(points)
    assert found["last_rate_kept"] == 5
    assert found["peak_output_tokens_per_s"] == 50
    assert found["knee_requests_per_s"] == pytest.approx(5)


def test_ladders() -> None:
    assert search.doubling(16, 256) == [16, 32, 64, 128, 256]
    assert search.doubling(3, 2) == [3]
    assert search.geometric(1, 16, 5) == [1, 2, 4, 8, 16]


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.floats(0.01, 100), st.integers(1, 12))
def test_a_search_tries_no_more_than_it_may_and_no_rate_twice(met: list[bool], start: float, most: int) -> None:
    tried: list[float] = []

    def probe(rate: float) -> Probe:
        tried.append(rate)
        return Probe(rate, "failed", met[len(tried) - 1])

    found = search.capacity(probe, start, precision=0.1, most=most)
    assert [each.rate for each in found.probes] == tried
    assert tried[0] == start
    assert 1 <= len(tried) == len(set(tried)) <= most
    assert found.low == max((rate for rate, ok in zip(tried, met, strict=False) if ok), default=None)
    assert found.high == min((rate for rate, ok in zip(tried, met, strict=False) if not ok), default=None)
    assert found.unresolved == ()


def test_a_sweep_goes_on_as_long_as_it_gains() -> None:
    points = [point(16, 100), point(32, 102.1), point(64, 101)]
    assert search.stop_reason(points[:1], None, 0.02) is None
    assert search.stop_reason(points[:2], None, 0.02) is None
    assert search.stop_reason(points, None, 0.02) == "throughput stopped rising: 101.0/s at 64 after 102.1"
    assert search.stop_reason(points, None, -1) is None


def test_where_answers_have_no_tokens_requests_are_counted() -> None:
    points = [point(rate, 0, done=None if rate < 4 else 3.0) for rate in (1.0, 2.0, 4.0, 8.0)]
    for each in points:
        each["figures"]["output_tokens"] = [None, None]
    found = search.saturation_point(points)
    assert (found["last_rate_kept"], found["peak_requests_per_s"]) == (2, 3)
    assert found["knee_requests_per_s"] is not None
    nothing = point(1.0, 0)
    nothing["figures"] = {"output_tokens": [None, None], "offered": [1.0, None], "requests": [None, None]}
    assert search.stop_reason([nothing, nothing], None, 0.02) is None


@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0, 16, 6), (-1, 16, 6), (1, 0, 6), (1, -2, 6), (1, float("inf"), 3), (1, 16, 0)]
)
def test_rates_that_there_are_none_of(start: float, end: float, steps: int) -> None:
    with pytest.raises(LoadTestError, match="rates go from one above 0"):
        search.geometric(start, end, steps)


@pytest.mark.parametrize(("start", "end"), [(0, 8), (-4, 8), (4, 0), (4, -1)])
def test_sessions_at_once_that_there_are_none_of(start: int, end: int) -> None:
    with pytest.raises(LoadTestError, match="1 or more"):
        search.doubling(start, end)


def test_rates_that_are_the_same_in_three_digits_are_one() -> None:
    """Each has a folder by its name: the second would have been measured over the first."""
    assert search.geometric(1, 1.01, 5) == [1, 1.01]
    assert search.geometric(5, 5, 3) == [5]
    assert search.geometric(16, 1, 3) == [16, 4, 1]


@pytest.mark.parametrize(("most", "precision"), [(0, 0.1), (-1, 0.1), (5, 0), (5, float("nan"))])
def test_a_search_that_cannot_end(most: int, precision: float) -> None:
    with pytest.raises(LoadTestError, match="a search needs"):
        search.capacity(lambda rate: Probe(rate, "passed", True), 1.0, precision, most)


def test_a_search_doubles_and_halves_and_bisects() -> None:
    """By hand, for a server that keeps up to 11: up from 2 and down from 100."""
    tried: list[float] = []

    def probe(rate: float) -> Probe:
        tried.append(rate)
        return Probe(rate, "passed" if rate <= 11 else "failed", rate <= 11)

    assert search.capacity(probe, 2.0, 0.3).high == 12
    assert tried == [2, 4, 8, 16, 12, 10]  # 10 and 12 are within 30 %
    tried.clear()
    assert search.capacity(probe, 100.0, 0.3).low == 10.9375
    assert tried == [100, 50, 25, 12.5, 6.25, 9.375, 10.9375]
    given_up = search.capacity(probe, 2.0, 0.3, 2)
    assert (given_up.low, given_up.high, len(given_up.probes)) == (4, None, 2)


def test_a_bound_is_held_against_the_median_of_each_measure() -> None:
    bound = slo.parse("ttft=1,tpot=0.05")
    last = point(16, 100)
    latency = last["runs"][0]["latency"]
    for ttft, tpot, said in (
        (1.0, 0.05, None),
        (0.5, None, None),  # answers of one token have no time between tokens
        (1.001, 0.01, "latency bound: median ttft 1001 ms at 16 is over 1000 ms"),
        (0.5, 0.06, "latency bound: median tpot 60 ms at 16 is over 50 ms"),
        ("inf", 0.01, "latency bound: median ttft inf ms at 16 is over 1000 ms"),
    ):
        latency["ttft"], latency["tpot"] = {"headline": {"p50": ttft}}, {"headline": {"p50": tpot}}
        assert search.stop_reason([last], bound, 0.02) == said


def test_a_single_request_has_no_rate_and_ends_no_sweep() -> None:
    """A sweep of one request a point has nothing to be kept up with: all that is said is that it is not known."""
    points = [point(rate, 0) for rate in (1.0, 2.0, 3.0, 4.0)]
    for each in points:
        each["figures"] = {"output_tokens": [None, None], "offered": [None, None], "requests": [None, None]}
    assert search.stop_reason(points, None, 0.02) is None
    found = search.saturation_point(points)
    assert found.pop("last_rate_kept") is found.pop("knee_requests_per_s") is None
    ((name, peak),) = found.items()
    assert (name, math.isnan(peak)) == ("peak_requests_per_s", True)


def test_a_rate_is_kept_down_to_nine_tenths_and_while_no_queue_grows() -> None:
    points = [point(1, 10), point(2, 20), point(4, 36), point(8, 36)]
    for each, done, rising in zip(points, (1.0, 1.8, 3.59, 7.9), (False, False, False, True), strict=True):
        each["figures"]["requests"], each["runs"][0]["saturation"]["rising"] = [done, None], rising
    assert search.saturation_point(points)["last_rate_kept"] == 2
    points[3]["runs"][0]["saturation"]["rising"] = False
    assert search.saturation_point(points)["last_rate_kept"] == 8
