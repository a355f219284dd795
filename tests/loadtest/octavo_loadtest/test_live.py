from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octavo_loadtest.arrivals import Arrivals
from octavo_loadtest.job import Pulse, Target
from octavo_loadtest.live import LiveView, announced, left, spoken
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.plan import make
from octavo_loadtest.record import Chunk, Record
from octavo_loadtest.text import Calibration

MS = 1_000_000


def run_so_far() -> Run:
    run = Run(Target("http://x", "m"), Load(rate=3), Arrivals("poisson"), 10, "", Calibration(), 0, 0.0)
    chunks = [Chunk((500 + 20 * i) * MS, "text", 4, None) for i in range(5)]
    run.records = [
        Record(0, "a", 0, 0, 1, 5, 0, 100 * MS, 110 * MS, end=600 * MS, chunks=chunks),
        Record(1, "b", 0, 0, 1, 5, 0, 100 * MS, 110 * MS, end=600 * MS, error="http 429"),
    ]
    run.senders.hear(Pulse(0, sent=5, finished=2, cpu_seconds=0.1, wall_seconds=1.0, lags=[0.001, 0.002]))
    return run


def test_the_view_shows_rates_and_percentiles() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=True, width=100), "a title") as view:
        view(run_so_far(), 1.0)
    shown = out.getvalue()
    for piece in (
        "a title",
        "5 sent, 2 finished of 10",
        "3 sessions/s offered",
        "1 s, about 4 s left",
        "p50 400.0 ms",
        "p50 20.0 ms",
        "2.0 ms late",
    ):
        assert piece in shown, piece


def test_what_comes_is_said_first_and_what_is_left_by_the_pace() -> None:
    talks = make(Load(workload="chat-sharegpt", scale=0.1, rate=2, requests=60))
    assert announced(talks).startswith(f"60 requests in {len(talks.sessions)} sessions; the last session begins after")
    closed = make(Load(arrivals="closed", concurrency=4, requests=300, duration=200))
    assert announced(closed) == "up to 300 requests, 4 sessions at once, for 3 min"
    run = run_so_far()
    assert left(run, 10.0) == 40.0  # two of ten in ten seconds
    run.plan = talks
    assert left(run, 1.0) == pytest.approx(max(talks.sessions[-1].at - 1.0, 4.0))
    run.records = []
    run.arrivals = Arrivals("closed")
    assert left(run, 10.0) is None


def test_a_pipe_gets_a_line_now_and_then() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=200), "a title") as view:
        view(run_so_far(), 6.0)
        view(run_so_far(), 6.1)
    assert out.getvalue().count("\n") == 1
    assert "3 in flight" in out.getvalue()


@given(st.floats(0.1, 500), st.integers(0, 20), st.sampled_from([0.0, 30.0]), st.booleans())
def test_what_is_left_is_bounded(now: float, finished: int, duration: float, closed: bool) -> None:
    law = "closed" if closed else "constant"
    run = run_so_far()
    run.load = Load(arrivals=law, concurrency=2 * closed, rate=3, requests=20, duration=duration, drain=5.0)
    run.arrivals, run.planned, run.plan = Arrivals(law), 20, make(run.load)
    run.records = [run.records[0]] * finished
    found = left(run, now)
    if closed and not finished and not duration:
        assert found is None
        return
    assert found is not None
    assert found >= 0
    if closed:
        assert not duration or found <= max(0.0, duration - now)
        assert finished < 20 or found == 0
    else:
        last = run.plan.sessions[-1].at
        assert max(0.0, last - now) <= found <= max(0.0, last - now + run.load.drain)


def test_seconds_and_minutes() -> None:
    assert [spoken(seconds) for seconds in (0.4, 119.4, 120, 3600)] == ["0 s", "119 s", "2 min", "60 min"]


def test_a_run_of_which_nothing_is_known_yet() -> None:
    run, out = run_so_far(), io.StringIO()
    run.records, run.senders.lags = [], []
    with LiveView(Console(file=out, width=200), "a title") as view:
        view(run, 6.0)
    assert "5 sent, 0 finished of 10, 5 in flight, TTFT -" in out.getvalue()
