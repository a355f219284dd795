from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.untold import Untold
from octavo.request import SequenceUpdate
from octavo.step import LogprobRow


def untold(first: int, count: int) -> Untold:
    return Untold(SequenceUpdate("r", 0, [7] * count), first, count)


@given(first=st.integers(1, 9), count=st.integers(0, 9), data=st.data())
def test_any_cut_into_steps_asks_for_each_token_once(first: int, count: int, data: st.DataObject) -> None:
    waits, computed = untold(first, count), first - 1
    while not waits.is_complete:
        step = data.draw(st.integers(1, 4))
        wanted = waits.wanted(computed, step)
        waits.take(wanted.start, [LogprobRow([index], [-float(index)], 1) for index in wanted])
        computed += step
    told = waits.told(-1.0, lambda update, row: setattr(update, "cumulative_logprob", row.logprobs[0]))
    assert [row.token_ids for row in waits.rows] == [[index] for index in range(first, first + count)]
    assert told.cumulative_logprob == (-float(first + count - 1) if count else -1.0)


def test_a_step_that_computes_again_changes_nothing() -> None:
    waits = untold(5, 3)
    waits.take(5, [LogprobRow([5], [-5.0], 1), LogprobRow([6], [-6.0], 1)])
    waits.take(5, [LogprobRow([0], [0.0], 1)])
    assert [row.token_ids for row in waits.rows] == [[5], [6]]
    assert waits.wanted(4, 10) == range(7, 8)


def test_another_sequence_has_an_update_of_its_own() -> None:
    waits = untold(5, 2)
    other = waits.of(1)
    other.update.token_ids.append(1)
    assert (waits.update.token_ids, other.update.index) == ([7, 7], 1)
