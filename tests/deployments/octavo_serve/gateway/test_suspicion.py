"""Who is suspected, who is refused, and who is neither."""

from __future__ import annotations

import pytest

from octavo_serve.gateway.suspicion import CALM_SECONDS, CERTAIN, CLEARED_WEIGHT, Deaths, Suspicion


def at_shard(*phases: str) -> list[Suspicion]:
    """Requests at one shard, in these phases."""
    there = []
    for phase in phases:
        suspicion = Suspicion()
        suspicion.alone = phase != "together"
        suspicion.enters()
        if phase == "alone":
            suspicion.turns()
        assert suspicion.phase == phase
        there.append(suspicion)
    return there


@pytest.mark.parametrize(
    ("phases", "losses"),
    [
        (["together", "together"], [1, 1]),
        (["together"], [1]),
        (["alone", "together", "together"], [1, 0, 0]),
        (["alone", "waiting", "together"], [1, 0, 0]),
        (["waiting", "together", "together"], [0, 1, 1]),
        (["waiting", "waiting"], [0, 0]),
        (["waiting"], [0]),
    ],
)
def test_who_may_have_stopped_a_shard(phases: list[str], losses: list[int]) -> None:
    there = at_shard(*phases)
    for suspicion in there:
        suspicion.loses("shard", there, {}, died=True)
    assert [suspicion.num_losses for suspicion in there] == losses
    assert [suspicion.alone for suspicion in there] == [
        phase != "together" or bool(lost) for phase, lost in zip(phases, losses, strict=True)
    ]
    assert not any(suspicion.is_guilty(CERTAIN) for suspicion in there)


def lose(suspicion: Suspicion, shard: str, how: str, told: dict[int, int] | None = None, *, died: bool = True) -> None:
    """It is sent to a shard, which is lost while the request runs there so."""
    suspicion.enters()
    others = [suspicion, Suspicion()]
    if how == "alone":
        suspicion.turns()
    elif how == "only":
        others = [suspicion]
    elif how == "beside":
        others[1].alone = True
        others[1].enters()
        others[1].turns()
    elif how == "acquitted":
        suspicion.turns()
        suspicion.turns()
    suspicion.loses(shard, others, told or {0: 7}, died=died)


@pytest.mark.parametrize(
    ("ways", "guilty"),
    [
        (["together", "alone"], False),
        (["together", "alone", "alone"], True),
        (["only", "alone"], True),
        (["only", "acquitted", "alone"], False),
        (["only", "acquitted", "acquitted", "acquitted"], False),
        (["together", "acquitted", "alone", "alone"], True),
        (["together", "waiting", "waiting", "waiting", "alone"], False),
        (["beside", "beside", "beside", "together"], False),
    ],
)
def test_two_deaths_in_a_row_that_only_it_can_have_caused(ways: list[str], guilty: bool) -> None:
    suspicion = Suspicion()
    for number, way in enumerate(ways):
        lose(suspicion, f"shard {number}", way)
    assert suspicion.is_guilty(CERTAIN) == guilty


def test_a_cut_link_makes_nobody_guilty() -> None:
    suspicion = Suspicion()
    for shard in "abcdefgh":
        lose(suspicion, shard, "alone" if suspicion.alone else "only", died=False)
        assert suspicion.alone
        assert not suspicion.is_guilty(CERTAIN)
        assert not suspicion.is_undecided(CERTAIN)
        suspicion.lives(shard)
    assert suspicion.num_losses == 0


def test_before_a_refusal_the_shards_fate_is_waited_for() -> None:
    suspicion = Suspicion()
    lose(suspicion, "a", "only")
    lose(suspicion, "b", "alone", died=False)
    assert suspicion.is_undecided(CERTAIN)
    assert not suspicion.is_guilty(CERTAIN)
    suspicion.died("b")
    assert suspicion.is_guilty(CERTAIN)
    assert not suspicion.is_undecided(CERTAIN)
    suspicion.died("c")
    suspicion.lives("c")


@pytest.mark.parametrize(
    ("told", "guilty"),
    [
        ([{0: 7}, {0: 7}], True),
        ([{0: 7}, {0: 8}], False),  # it has passed the place at which the first died
        ([{0: 7, 1: 7}, {0: 9, 1: 7}], True),  # the second sequence may be what stops them
        ([{0: 7, 1: 7}, {0: 9}], False),  # it has ended
        ([{0: 7}, {0: 8}, {0: 8}], True),
        ([{0: 7}, {0: 8}, {0: 9}, {0: 10}], False),
    ],
)
def test_who_tells_more_before_each_death_causes_none(told: list[dict[int, int]], guilty: bool) -> None:
    suspicion = Suspicion()
    lose(suspicion, "together", "together")
    for number, counts in enumerate(told):
        lose(suspicion, f"shard {number}", "alone", counts)
    assert suspicion.is_guilty(CERTAIN) == guilty


def test_what_was_told_among_others_may_lag_behind_and_clears_nobody() -> None:
    suspicion = Suspicion()
    lose(suspicion, "a", "only", {0: 7})
    lose(suspicion, "b", "alone", {0: 8})
    assert suspicion.is_guilty(CERTAIN)


def test_where_shards_die_for_other_reasons_more_deaths_are_asked_for() -> None:
    now = 0.0
    deaths, suspicion, other = Deaths(lambda: now), Suspicion(), Suspicion()
    everybody = [suspicion, other]
    for shard, how in (("a", "together"), ("b", "alone"), ("c", "alone")):
        deaths.add(shard)
        lose(suspicion, shard, how)
    assert deaths.certain(suspicion, everybody) == CERTAIN
    assert deaths.certain(other, everybody) == CERTAIN + 1  # "a" may have died of anything
    deaths.add("d")
    lose(other, "d", "only")
    assert deaths.certain(suspicion, everybody) == CERTAIN  # "d" is the other's
    lose(other, "d", "acquitted")
    other.turns()
    assert deaths.certain(suspicion, everybody) == CERTAIN + 1
    deaths.forget(suspicion.losses)  # it is refused
    assert deaths.certain(other, everybody) == CERTAIN + 1
    now = CALM_SECONDS + 1
    assert deaths.certain(other, everybody) == CERTAIN


def test_poisons_that_come_together_do_not_excuse_each_other() -> None:
    deaths, one, two = Deaths(), Suspicion(), Suspicion()
    for number in range(CERTAIN):
        for name, suspicion in (("one", one), ("two", two)):
            suspicion.alone = True
            deaths.add(f"{name} {number}")
            lose(suspicion, f"{name} {number}", "alone")
    assert all(suspicion.is_guilty(deaths.certain(suspicion, [one, two])) for suspicion in (one, two))


def test_trials_that_clear_a_request_make_its_deaths_weigh_less_and_not_nothing() -> None:
    suspicion = Suspicion()
    for number in range(10):
        lose(suspicion, f"shard {number}", "together")
        suspicion.enters()
        suspicion.turns()
        suspicion.turns()
    assert suspicion.num_losses == 10 // CLEARED_WEIGHT
    assert not suspicion.losses
    suspicion.lives("shard 0")
    for number in range(1, 4):
        suspicion.lives(f"shard {number}")
    assert suspicion.num_losses == 6 // CLEARED_WEIGHT
