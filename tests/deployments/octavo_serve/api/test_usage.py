"""Usage: by tenant, model and hour; seconds by the cost model; money by the price."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pytest

from octavo.cost_model import Cost, StepWork, attended
from octavo_serve.api.model import Price, ServedModel
from octavo_serve.api.tenants import Tenant
from octavo_serve.api.usage import HOUR, HOURS, Ledger, Usage, seconds_of

COST = Cost(0.5, 1e-2, 1e-3, 1e-5, 1e-6)


def model(name: str = "m", price: Price | None = None) -> ServedModel:
    anything: Any = None
    return ServedModel(name, 0, anything, anything, price=price or Price(2.0, 0.5, 10.0))


def use(ledger: Ledger, tenant: str, lengths: list[int], cached: int = 0, **more: Any) -> None:
    with ledger.entry(Tenant(tenant), model(**more), 100, sum(lengths)) as used:
        used.prompt(COST, 100, cached, lengths)


def test_seconds_are_those_of_the_steps_that_compute_it() -> None:
    steps = [StepWork(20, 1, attended(80, 20), 100, True)]
    steps += [StepWork(1, 1, context, context, False) for context in (101, 102, 103)]
    computed = sum(COST.seconds(step) - COST.step for step in steps)
    assert seconds_of(COST, 100, 80, [3]) == pytest.approx(computed - COST.sequence)
    assert seconds_of(COST, 100, 80, [3, 3]) < 2 * seconds_of(COST, 100, 80, [3]), "a prompt is computed once"
    assert seconds_of(COST, 100, 0, [3]) > seconds_of(COST, 100, 80, [3])


def test_what_is_cached_has_a_price_of_its_own() -> None:
    ledger = Ledger()
    use(ledger, "a", [5, 5], cached=60)
    use(ledger, "a", [0])
    found = ledger.usage["a", "m"]
    assert (found.requests, found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (2, 200, 60, 10)
    assert found.cost == pytest.approx((2.0 * 140 + 0.5 * 60 + 10.0 * 10) / 1e6)


def test_what_came_before_an_error_is_counted() -> None:
    ledger = Ledger()
    with suppress(ZeroDivisionError), ledger.entry(Tenant("a"), model(), 100, 50) as used:
        used.prompt(COST, 100, 0, [7])
        raise ZeroDivisionError
    assert (ledger.usage["a", "m"].requests, ledger.usage["a", "m"].completion_tokens) == (1, 7)


def test_hours_are_kept_for_a_day_and_survive_a_clock_that_jumps() -> None:
    now = [100.0 * HOUR]
    ledger = Ledger(clock=lambda: now[0])
    for hours in (0, 1, 23, 24, -5):
        now[0] = (100 + hours) * HOUR
        use(ledger, "a", [1])
    assert sorted(ledger.hours) == [95]
    assert ledger.usage["a", "m"].requests == 5
    for hours in range(100):
        now[0] = (200 + hours) * HOUR
        use(ledger, "a", [1])
    assert sorted(ledger.hours) == [*range(300 - HOURS, 300)]


def test_tenants_that_are_gone_become_one() -> None:
    ledger = Ledger()
    for tenant in ("a", "b", "c"):
        use(ledger, tenant, [1])
    use(ledger, "b", [1], name="n")
    for _ in range(2):
        ledger.keep({"a"})
    assert {key: used.requests for key, used in ledger.usage.items()} == {
        ("a", "m"): 1,
        ("other", "m"): 2,
        ("other", "n"): 1,
    }


def test_sums_are_sums() -> None:
    one = Usage(1, 2, 3, 4, 5, 6.0, 7.0)
    one.add(one)
    assert asdict(one) == asdict(Usage(2, 4, 6, 8, 10, 12.0, 14.0))
