from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import slo
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.stats import wilson


def test_names_and_bounds() -> None:
    assert slo.parse("mlperf-llama3.1-8b").bounds == {"ttft": 2.0, "tpot": 0.1}
    assert slo.parse("ttft=0.5,itl=0.05").bounds == {"ttft": 0.5, "itl": 0.05}


@pytest.mark.parametrize(
    "text", ["nothing", "ttft", "ttft=fast", "speed=3", "ttft=0", "ttft=-1", "ttft=nan", "ttft=inf"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(LoadTestError):
        slo.parse(text)


def test_good_requests_keep_every_bound() -> None:
    asked = slo.parse("ttft=1,tpot=0.1")
    assert asked.good({"ttft": 1.0, "tpot": 0.05})
    assert asked.good({"ttft": 1.0, "tpot": math.nan})
    assert not asked.good({"ttft": 1.01, "tpot": 0.05})
    assert not asked.good({"ttft": math.inf, "tpot": math.inf})


@pytest.mark.parametrize(
    ("good", "total", "verdict"), [(1000, 1000, "passed"), (90, 100, "failed"), (10, 10, "unresolved")]
)
def test_verdicts_need_evidence(good: int, total: int, verdict: str) -> None:
    assert slo.verdict(wilson(good, total), 0.99) == verdict


BOUNDS = st.dictionaries(st.sampled_from(slo.MEASURES), st.integers(1, 9).map(float), min_size=1)


@given(BOUNDS, st.fixed_dictionaries({key: st.floats(0, 10) for key in slo.MEASURES}), st.floats(0, 10))
def test_a_request_gets_no_better_by_being_slower(
    bounds: dict[str, float], measured: dict[str, float], slower: float
) -> None:
    asked = slo.parse(",".join(f"{key}={value:g}" for key, value in bounds.items()))
    assert asked.bounds == bounds
    late = {key: value + slower for key, value in measured.items()}
    assert asked.good(measured) >= asked.good(late)
    assert asked.good(measured) == all(measured[key] <= value for key, value in bounds.items())


@given(st.integers(0, 500), st.integers(1, 500), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_verdict_never_contradicts_what_was_observed(good: int, bad: int, target: float) -> None:
    said = slo.verdict(wilson(good, good + bad), target)
    if said != "unresolved":
        assert (said == "passed") == (good / (good + bad) >= target)
