"""Quotas on a clock of our own: exact in every minute, and not in the way below it."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadRequest, QuotaExceeded
from octavo_serve.api.quotas import AGAIN, GRAIN, MINUTE, Quotas, Standing, Window
from octavo_serve.api.tenants import NOBODY, Tenant


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def wait(quotas: Quotas, tenant: Tenant, prompt: int = 1, answer: int = 0) -> float:
    """Seconds that a request is told to wait; 0 for one that runs, and has ended with all of its answer."""
    try:
        with quotas.taken(tenant, prompt, answer) as taken:
            taken.unused = 0
    except QuotaExceeded as error:
        return error.retry_after
    return 0.0


@given(
    most=st.integers(1, 20),
    asked=st.lists(st.tuples(st.floats(0, 40) | st.sampled_from([0.0, GRAIN, MINUTE]), st.integers(1, 8)), max_size=60),
)
def test_no_minute_has_more_than_the_quota_and_nothing_below_it_is_refused(
    most: int, asked: list[tuple[float, int]]
) -> None:
    clock = Clock()
    quotas, tenant, taken = Quotas(clock), Tenant("a", tokens_per_minute=most), list[tuple[float, int]]()

    def used(seconds: float) -> int:
        return sum(amount for at, amount in taken if at > clock.now - seconds)

    for pause, amount in asked:
        clock.now += pause
        if amount > most:
            continue
        if told := wait(quotas, tenant, amount):
            assert used(MINUTE + GRAIN) + amount > most
            clock.now += told
            assert not wait(quotas, tenant, amount), "it was told the right time"
        taken.append((clock.now, amount))
        assert used(MINUTE) <= most


def test_a_minute_of_any_length_takes_little_room() -> None:
    window = Window()
    for step in range(20_000):
        window.take(1, step / 100)
    window.forget(200.0)
    assert len(window._grains) <= MINUTE / GRAIN + 1


def test_what_the_answer_did_not_have_is_given_back(quotas: Quotas, clock: Clock) -> None:
    tenant = Tenant("a", tokens_per_minute=100)
    with quotas.taken(tenant, 10, 80) as taken:
        assert quotas.standing(tenant)[0].remaining == 10
        assert wait(quotas, tenant, 10, 1) > 0
        taken.unused -= 30
    assert quotas.standing(tenant) == [Standing("tokens", 100, 60, pytest.approx(60, abs=GRAIN))]
    with quotas.taken(tenant, 10, 50):
        clock.now += MINUTE + GRAIN
        quotas.check(tenant)
    assert quotas.standing(tenant) == [Standing("tokens", 100, 100, 0.0)], "what is forgotten is not given back twice"


def test_a_request_that_fails_counts_and_one_that_is_refused_does_not(quotas: Quotas) -> None:
    tenant = Tenant("a", requests_per_minute=2, max_concurrent=1)
    with suppress(ZeroDivisionError), quotas.taken(tenant, 5, 5):
        raise ZeroDivisionError
    with quotas.taken(tenant, 5, 5):
        assert wait(quotas, tenant) == AGAIN
        with pytest.raises(QuotaExceeded, match="the tenant 'a' has 1 requests running, which is its limit"):
            quotas.check(tenant)
    assert quotas.standing(tenant)[0].remaining == 0
    with pytest.raises(QuotaExceeded, match=r"may use 2 requests in a minute, .* takes 1: try again in [56]\d\.\d s"):
        quotas.check(tenant)
    assert dict(quotas.refused) == {("a", "concurrent"): 2, ("a", "requests"): 1}


def test_what_is_never_granted_says_so(quotas: Quotas) -> None:
    tenant = Tenant("a", tokens_per_minute=100)
    with pytest.raises(BadRequest, match=r"prompt has 40 tokens and the answer may have 61, but .* may use 100"):
        wait(quotas, tenant, 40, 61)
    assert wait(quotas, tenant, 40, 60) == 0


def test_many_at_once_get_exactly_the_quota(quotas: Quotas) -> None:
    tenant, other = Tenant("a", max_concurrent=7, requests_per_minute=9), Tenant("b", requests_per_minute=1)
    with ExitStack() as running:
        for _ in range(50):
            with suppress(QuotaExceeded):
                running.enter_context(quotas.taken(tenant, 1, 1))
        assert wait(quotas, other) == 0, "what one tenant uses is another's in nothing"
    assert [wait(quotas, tenant) > 0 for _ in range(4)] == [False, False, True, True]


def test_who_has_no_quota_leaves_no_trace(quotas: Quotas) -> None:
    quotas.check(NOBODY)
    assert wait(quotas, NOBODY, 10**9, 10**9) == 0
    assert quotas._of == {}


def test_tenants_that_are_gone_are_forgotten_and_those_that_stay_are_not(quotas: Quotas) -> None:
    gone, stays = Tenant("a", requests_per_minute=1), Tenant("b", requests_per_minute=1)
    with quotas.taken(gone, 1, 1):
        wait(quotas, stays)
        quotas.keep({"b"})
    assert (wait(quotas, gone), wait(quotas, stays) > 0) == (0, True)


def test_a_quota_that_shrinks_below_what_is_used_waits_for_all_of_it(quotas: Quotas, clock: Clock) -> None:
    wait(quotas, Tenant("a", tokens_per_minute=100), 100)
    clock.now += 10
    small = Tenant("a", tokens_per_minute=5)
    assert quotas.standing(small)[0].remaining == 0
    assert wait(quotas, small, 5) == pytest.approx(MINUTE - 10, abs=GRAIN)
