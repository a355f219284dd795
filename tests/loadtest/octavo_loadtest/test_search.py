from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import search, slo
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
