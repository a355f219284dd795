from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.figures import BY_KEY, FIGURES, lookup, missed, point


def summary(ttft: float = 0.1, met: bool = True) -> dict[str, Any]:
    return {
        "latency": {"ttft": {"headline": {"p50": ttft, "p99": None}}},
        "slos": [{"name": "s", "share": 0.5, "met": met}],
        "counts": {"failed": 3},
    }


def test_numbers_are_found_by_their_path() -> None:
    assert lookup(summary(), ("latency", "ttft", "headline", "p50")) == 0.1
    assert lookup(summary(), ("slo", "share")) == 0.5
    for path in (("latency", "ttft", "headline", "p99"), ("nothing", "here"), ("counts", "failed", "deeper")):
        assert math.isnan(lookup(summary(), path))
    assert math.isnan(lookup({"slos": []}, ("slo", "share")))
    assert lookup({"x": "inf"}, ("x",)) == math.inf


def test_every_figure_has_a_key_of_its_own() -> None:
    assert len(BY_KEY) == len(FIGURES)


def test_repeats_have_an_interval() -> None:
    made = point("three", 1.0, [summary(0.1), summary(0.2), summary(0.3)])
    mean, half = made["figures"]["ttft_p50"]
    assert mean == pytest.approx(200)
    assert half == pytest.approx(4.303 * 100 / math.sqrt(3), rel=1e-3)
    assert math.isnan(made["figures"]["ttft_p99"][0])
    assert math.isnan(point("one", 1.0, [summary()])["figures"]["ttft_p50"][1])


def test_one_failed_repeat_makes_the_mean_infinite() -> None:
    assert point("x", 1.0, [summary(0.1), summary(math.inf)])["figures"]["ttft_p50"][0] == math.inf


def test_what_was_missed_is_named() -> None:
    points = [point("a", 1.0, [summary(), summary(met=False)]), point("b", 2.0, [summary()])]
    assert missed({"points": points}) == ["a: s"]


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=8))
def test_a_point_lies_among_its_repeats(values: list[float]) -> None:
    mean, half = point("x", 1.0, [summary(value) for value in values])["figures"]["ttft_p50"]
    assert 999.99 * min(values) <= mean <= 1000.01 * max(values)
    assert half >= 0 if len(values) > 1 else math.isnan(half)
