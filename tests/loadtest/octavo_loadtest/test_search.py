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
