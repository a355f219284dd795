"""Who is suspected, who is refused, and who is neither."""

from __future__ import annotations

import pytest

from octavo_serve.gateway.suspicion import Suspicion


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
        suspicion.loses("shard", there, died=True)
    assert [suspicion.num_losses for suspicion in there] == losses
    assert [suspicion.alone for suspicion in there] == [
        phase != "together" or bool(lost) for phase, lost in zip(phases, losses, strict=True)
    ]
    assert not any(suspicion.is_guilty for suspicion in there)


def lose(suspicion: Suspicion, shard: str, how: str, *, died: bool = True) -> None:
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
    suspicion.loses(shard, others, died=died)


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
    assert suspicion.is_guilty == guilty


def test_a_cut_link_makes_nobody_guilty() -> None:
    suspicion = Suspicion()
    for shard in "abcdefgh":
        lose(suspicion, shard, "alone" if suspicion.alone else "only", died=False)
        assert suspicion.alone
        assert not suspicion.is_guilty
        assert not suspicion.is_undecided
        suspicion.lives(shard)
    assert suspicion.num_losses == 0


def test_before_a_refusal_the_shards_fate_is_waited_for() -> None:
    suspicion = Suspicion()
    lose(suspicion, "a", "only")
    lose(suspicion, "b", "alone", died=False)
    assert suspicion.is_undecided
    assert not suspicion.is_guilty
    suspicion.died("b")
    assert suspicion.is_guilty
    assert not suspicion.is_undecided
    suspicion.died("c")
    suspicion.lives("c")
