from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import arrivals
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.stats import ks_critical, ks_to_cdf

N, RATE = 4000, 8.0


def sample(text: str, seed: int = 3) -> arrivals.Floats:
    return arrivals.times(arrivals.parse(text), N, RATE, np.random.default_rng(seed))


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(sample("poisson"))
    assert ks_to_cdf(gaps, 1 - np.exp(-RATE * gaps)) < ks_critical(len(gaps))


def test_rescaled_poisson_ends_on_time() -> None:
    assert sample("poisson:rescale=1")[-1] == pytest.approx(N / RATE)


def test_constant_is_constant() -> None:
    assert np.diff(sample("constant")) == pytest.approx(1 / RATE)


@pytest.mark.parametrize("cv", [0.5, 2.0, 3.0])
def test_gamma_has_its_burstiness(cv: float) -> None:
    gaps = np.diff(sample(f"gamma:cv={cv}"))
    assert gaps.mean() == pytest.approx(1 / RATE, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15)


def test_onoff_is_azures_code_trace() -> None:
    rate = 62 / (62 / 11 + 19)  # 62 requests at 11/s, then 19 s of nothing
    law = arrivals.parse("onoff")
    gaps = np.diff(arrivals.times(law, 40_000, rate, np.random.default_rng(0)))
    long = gaps > 2.0
    assert 1 / gaps.mean() == pytest.approx(rate, rel=0.1)
    assert np.median(gaps[~long]) == pytest.approx(math.log(2) / 11, rel=0.1)
    assert len(gaps) / long.sum() == pytest.approx(62, rel=0.25)
    assert gaps[long].mean() == pytest.approx(19 + 2, rel=0.15)  # an exponential above 2 s has 2 s more


def test_step_multiplies_the_rate() -> None:
    at = sample("step:factor=5,at=0.5,share=0.25")
    length = N / (RATE * 2)
    inside = ((at >= 0.5 * length) & (at < 0.75 * length)).sum() / (0.25 * length)
    before = (at < 0.5 * length).sum() / (0.5 * length)
    assert inside == pytest.approx(5 * RATE, rel=0.1)
    assert before == pytest.approx(RATE, rel=0.1)


def test_ramp_rises_linearly() -> None:
    at = sample("ramp:start=0,end=2")
    share = at / (N / RATE)  # the arrivals' law has the density 2x on (0, 1)
    share = share[share < 1]
    assert ks_to_cdf(share, share**2) < ks_critical(len(share)) + 0.01


def test_rates_follow_their_points() -> None:
    at = sample("rates:0=1,50=3,100=3,150=1")
    counts = [((at >= start) & (at < start + 50)).sum() / 50 / RATE for start in (0, 50, 100)]
    assert counts == pytest.approx([2, 3, 2], rel=0.1)
    with pytest.raises(LoadTestError, match="second 0"):
        sample("rates:5=1")


@given(
    st.sampled_from(sorted(arrivals.LAWS)),
    st.integers(1, 300),
    st.floats(0.01, 1000),
    st.integers(0, 2**32 - 1),
)
def test_every_schedule_ascends_and_repeats(name: str, count: int, rate: float, seed: int) -> None:
    law = arrivals.Arrivals(name)
    first, again = (arrivals.times(law, count, rate, np.random.default_rng(seed)) for _ in range(2))
    assert len(first) == count
    assert (first >= 0).all()
    assert (np.diff(first) >= 0).all()
    assert (first == again).all()


@pytest.mark.parametrize("text", ["uniform", "gamma:cv", "gamma:cv=x"])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(LoadTestError):
        arrivals.parse(text)


def test_bad_numbers_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(LoadTestError, match="above 0"):
        arrivals.times(arrivals.parse("poisson"), 5, 0.0, rng)
    with pytest.raises(LoadTestError, match="does not know"):
        arrivals.times(arrivals.parse("poisson:cv=2"), 5, 1.0, rng)


def test_text_and_back() -> None:
    assert str(arrivals.parse("gamma:cv=2.5")) == "gamma:cv=2.5"
    assert arrivals.parse("closed").closed


OPTIONS = {"onoff": {"size": 9.0, "duty": 0.5}, "step": {"factor": 3.0}, "rates": {"0": 1.0}}


@given(st.sampled_from(sorted(arrivals.LAWS)), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_a_law_does_not_know_its_unit_of_time(name: str, rate: float, seed: int) -> None:
    """A rate is a scale and nothing else: the same draws, so many times as fast."""
    law = arrivals.Arrivals(name, OPTIONS.get(name, {}))
    slow, fast = (arrivals.times(law, 50, each, np.random.default_rng(seed)) for each in (1.0, rate))
    assert fast * rate == pytest.approx(slow, rel=1e-6, abs=1e-9)


@given(st.sampled_from(["gamma", "onoff", "ramp"]), st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)))
def test_what_is_written_is_read_again(name: str, options: dict[str, int]) -> None:
    law = arrivals.Arrivals(name, {key: float(value) for key, value in options.items()})
    assert arrivals.parse(str(law)) == law


def test_nothing_arrives_while_the_rate_is_nothing() -> None:
    at = sample("rates:0=1,10=0,20=0,30=1")
    assert ((at < 10).sum() > 20) & ((at > 20).sum() > 20)
    assert ((at >= 10) & (at <= 20)).sum() == 0
    for text in ("rates:0=1,9=-1", "rates:0=1,9=0"):
        with pytest.raises(LoadTestError, match="a last one above 0"):
            sample(text)
