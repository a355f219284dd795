"""What was due and was not sent, by hand-made sessions and records in simulated time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.due import UNFINISHED, UNSENT, unsent, without_cut
from octavo_loadtest.job import Session, Turn
from octavo_loadtest.record import Record

S = 1_000_000_000


def session(name: str, at: float, turns: int = 1, first: int = 0, think: float = 0.0) -> Session:
    return Session(name, at, tuple(Turn(first + i, "", 5, think, 9, 2) for i in range(turns)))


def record(
    index: int, name: str, turn: int = 0, scheduled: float = 0.0, end: float | None = None, error: str | None = None
) -> Record:
    due = int(scheduled * S)
    return Record(
        index, name, turn, 0, 9, 5, 2, due, due, end=None if end is None else int(end * S), status=200, error=error
    )


def test_nothing_is_added_where_all_was_sent() -> None:
    sessions = [session("a", 0.0, 2), session("b", 1.0, first=2)]
    records = [record(0, "a", 0, 0, 1), record(1, "a", 1, 1, 2), record(2, "b", 0, 1, 2)]
    assert unsent(sessions, records, False, 10 * S) == []


def test_an_open_loops_request_is_due_at_its_time() -> None:
    sessions = [session(str(i), float(i), first=i) for i in range(20)]
    found = unsent(sessions, [record(0, "0", end=1), record(1, "1", scheduled=1, end=2)], False, 9 * S)
    assert [each.index for each in found] == list(range(2, 10))  # what is due later than the end is not missed
    assert [each.scheduled for each in found] == [i * S for i in range(2, 10)]
    assert all(each.sent is None and not each.ok for each in found)
    assert {(each.error or "").partition(":")[0] for each in found} == {UNSENT}
    assert (found[0].planned_prompt_tokens, found[0].planned_output_tokens, found[0].planned_cached_tokens) == (9, 5, 2)


def test_a_closed_loops_session_is_due_once_it_began() -> None:
    sessions = [session("a", 0.0, 3), session("b", 0.0, 3, first=3)]
    found = unsent(sessions, [record(0, "a", 0, 0, 1)], True, 10 * S)
    assert [each.index for each in found] == [1, 2]


def test_a_later_turn_is_due_when_its_user_has_read() -> None:
    sessions = [session("a", 0.0, 2, think=3.0)]
    found = unsent(sessions, [record(0, "a", 0, 0, 2)], False, 10 * S)
    assert found[0].scheduled == 5 * S
    assert unsent(sessions, [record(0, "a", 0, 0, 2)], False, 4 * S) == []  # still thinking when the run was over


def test_turns_behind_a_failed_one_are_due_with_it() -> None:
    sessions = [session("a", 1.0, 4, think=3.0)]
    failed = record(0, "a", 0, 1.0, 2.0, "http 503")
    found = unsent(sessions, [failed], False, 10 * S)
    assert [each.turn for each in found] == [1, 2, 3]
    assert {each.scheduled for each in found} == {1 * S}
    assert {each.error for each in found} == {"unsent: the turn before it failed"}


def test_turns_behind_an_unsent_one_are_due_too() -> None:
    first, second = unsent([session("a", 1.0, 2)], [], False, 10 * S)
    assert first.error == "unsent: it was still waiting when the run was over"
    assert second.error == "unsent: the turn before it failed"


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 4), st.integers(0, 4), st.booleans()), max_size=12),
    st.floats(0, 30),
)
def test_each_request_that_was_due_is_counted_once(planned: list[tuple[float, int, int, bool]], ended: float) -> None:
    """Whatever was sent: no request twice, none that was due before the end is missing, none is invented."""
    sessions, records, first = [], [], 0
    for at, turns, sent, fails in planned:
        name, sent = str(first), min(sent, turns)
        sessions.append(session(name, at, turns, first))
        for turn in range(sent):
            error = "http 500" if fails and turn == sent - 1 else None
            records.append(record(first + turn, name, turn, at, at + 1, error))
        first += turns
    found = unsent(sessions, records, False, int(ended * S))
    told = [each.index for each in (*records, *found)]
    assert len(told) == len(set(told))
    assert set(told) <= set(range(first))
    begun = {each.index for s in sessions if int(s.at * S) <= int(ended * S) for each in s.turns[:1]}
    assert begun <= set(told)


def cut(scheduled: float, error: str = UNFINISHED) -> Record:
    return record(9, "z", 0, scheduled, error=f"{error}: the run was over")


def test_an_interrupted_run_drops_what_had_waited_no_longer_than_an_answer_takes() -> None:
    """What Ctrl-C cut off after one second says nothing where answers take two; after five it is slower than them."""
    done = record(0, "a", 0, 0.0, 2.0)
    kept = without_cut([done, cut(9.0), cut(9.0, UNSENT), cut(5.0), cut(5.0, UNSENT)], 10 * S)
    assert [each.scheduled // S for each in kept] == [0, 5, 5]


def test_an_interrupted_run_keeps_real_failures() -> None:
    failed = record(0, "a", 0, 9.5, 9.6, "http 500")
    assert without_cut([failed, cut(0.0)], 10 * S) == [failed]  # nothing was answered: the cut one proves nothing
