"""Phases: whatever happens to a request and whenever, they follow each other without a gap and are as long as it is."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from octavo_serve.api import tracing
from octavo_serve.api.tracing import CURRENT, MAX_COURSES, MAX_PHASES, Trace, course

SECONDS = st.floats(0, 100)
EVENTS = st.lists(st.tuples(SECONDS, st.sampled_from(["queue", "began", "never ran", "failover", "respond"]), SECONDS))


def trace_of(events: list[tuple[float, str, float]], rest: float) -> Trace:
    """A trace in which these happened, each so many seconds after the one before; the last number is of `prefill`."""
    clock = SimpleNamespace(now=1000.0)
    times = SimpleNamespace(monotonic=lambda: clock.now, time_ns=lambda: 10**18)
    with patch.object(tracing, "time", times):
        trace = Trace("POST /", ("", ""), None, start=clock.now, since=10**18)
        way = trace.course()
        assert way is not None
        for pause, event, prefill in events:
            clock.now += pause
            if event in ("began", "never ran"):
                way.began(prefill if event == "began" else None)
            else:
                way.enter(event)
        clock.now += rest
        trace.finish()
    return trace


@given(EVENTS, SECONDS)
def test_phases_tile_the_request(events: list[tuple[float, str, float]], rest: float) -> None:
    trace = trace_of(events, rest)
    phases = trace.courses[0].phases
    assert (phases[0].start, phases[-1].end) == (trace.start, trace.end)
    assert all(before.end == after.start for before, after in pairwise(phases))
    walls = [trace.wall(phase.end) - trace.wall(phase.start) for phase in phases]
    assert all(wall >= 0 for wall in walls)
    assert trace.end is not None
    assert sum(walls) == trace.wall(trace.end) - trace.since
    assert len(phases) <= MAX_PHASES


def test_the_shard_says_how_much_of_the_wait_was_its_prefill() -> None:
    trace = trace_of([(1.0, "queue", 0), (5.0, "began", 2.0)], 3.0)
    spent = {phase.name: phase.end - phase.start for phase in trace.courses[0].phases}
    assert spent == {"prepare": 0.0, "route": 1.0, "queue": 3.0, "prefill": 2.0, "decode": 3.0}


def test_a_prefill_cannot_begin_before_its_request_was_sent() -> None:
    trace = trace_of([(1.0, "queue", 0), (5.0, "began", 7.0)], 3.0)
    spent = {phase.name: phase.end - phase.start for phase in trace.courses[0].phases}
    assert spent == {"prepare": 0.0, "route": 1.0, "queue": 0.0, "prefill": 5.0, "decode": 3.0}


def test_of_many_prompts_a_few_are_kept() -> None:
    trace = Trace("POST /", ("", ""), None)
    found = [trace.course() for _ in range(3 * MAX_COURSES)]
    assert [way is not None for way in found] == [True] * MAX_COURSES + [False] * 2 * MAX_COURSES
    trace.finish()
    assert len(trace.courses) == MAX_COURSES
    assert {way.phases[-1].end for way in trace.courses} == {trace.end}


def test_what_goes_on_without_its_request_is_not_kept() -> None:
    trace = Trace("POST /", ("", ""), None)
    trace.finish()
    assert trace.course() is None


def test_a_request_that_is_not_traced_has_no_course() -> None:
    assert CURRENT.get() is None
    assert course() is None
