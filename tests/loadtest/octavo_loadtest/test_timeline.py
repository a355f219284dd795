from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from octavo_loadtest import store, timeline
from octavo_loadtest.cli import app
from octavo_loadtest.client import Broken
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.timeline import Timeline

Simulate = Callable[..., tuple[Run, Any]]
BURST = Load(scale=0.03, rate=5, arrivals="step:factor=5,at=0.4,share=0.2", requests=180, warmup=0, drain=600)
LINE = Timeline(
    "x",
    offered=[(5.0, 1.0)],
    replicas=[(0.0, 1), (10.0, 1), (14.0, 2), (15.0, 4), (40.0, 1)],
    first_tokens=[(1.0, 0.1), (2.0, 0.3), (12.0, 2.0), (35.0, 0.2)],
    failed=0,
    burst=(10.0, 30.0),
    end=50.0,
)


@pytest.fixture
def run(simulated: Simulate) -> Run:
    """Five times the rate in the middle fifth of it, for a server that keeps up with twice the rate; it says of its
    replicas what it likes."""
    found = simulated(BURST, ttft=0.1, itl=0.0, slots=1)[0]
    found.replicas = [(0.0, 1), (10.0, None), (11.0, 3), (30.0, 1)]
    return found


def test_a_run_shows_its_burst(run: Run) -> None:
    line = timeline.of_run(run, "fake")
    start, end = line.burst
    length = 180 / (5 * 1.8)
    assert start == pytest.approx(0.4 * length)
    assert end == pytest.approx(0.6 * length)
    length = max(record.scheduled for record in run.records) / 1e9
    assert sum(rate for _, rate in line.offered) * length / len(line.offered) == pytest.approx(180, abs=1)
    assert len(line.first_tokens) == 180
    figures = line.figures
    assert figures["failed"] == 0
    assert (figures["TTFT p50 before"] or 0) < 0.5 < 3 < (figures["TTFT p99 burst"] or 0)


def test_failures_are_in_the_bursts_percentiles(simulated: Simulate) -> None:
    """A server that answers quickly those that it answers: its p99 is no better for the others."""
    broken = Broken("full")
    found, _ = simulated(BURST, ttft=0.1, itl=0.0, fault=lambda number: broken if 60 <= number < 100 else None)
    line = timeline.of_run(found, "x")
    assert line.failed == 40
    assert line.figures["TTFT p50 before"] == pytest.approx(0.1, abs=1e-5)
    assert line.figures["TTFT p99 burst"] == math.inf
    assert ["TTFT p99 burst", "∞"] in timeline.table([line])


def test_what_was_never_sent_is_in_them_too(simulated: Simulate) -> None:
    found, _ = simulated(replace(BURST, concurrency=1, drain=1.0), ttft=0.4, itl=0.0)
    line = timeline.of_run(found, "x")
    assert line.failed > 50
    assert line.figures["TTFT p99 after"] == math.inf


def test_figures_of_a_burst() -> None:
    figures = LINE.figures
    assert figures["first new replica after"] == 4
    assert figures["most replicas"] == 4
    assert figures["replica-seconds"] == 14 * 1 + 1 * 2 + 25 * 4  # the watch ended at 40
    assert figures["seconds not watched"] == 10
    assert figures["fewest again after"] == 10
    assert (figures["TTFT p50 before"], figures["TTFT p99 burst"], figures["TTFT p99 after"]) == (0.1, 2.0, 0.2)


@pytest.mark.parametrize(
    ("seen", "area", "unknown"),
    [
        ([(0.0, 2), (50.0, 2)], 100, 0),
        ([(0.0, 2), (20.0, 2)], 40, 30),  # nobody looked again: what it was then is not drawn on
        ([(0.0, 2)], 0, 50),
        ([(0.0, 2), (10.0, None), (30.0, 4), (50.0, 4)], 20 + 80, 20),
        ([(0.0, None), (10.0, 1), (20.0, None)], 10, 40),
        ([(5.0, 1), (60.0, 1)], 45, 5),  # the run ends before the last look
        ([(0.0, 1), (49.0, 3), (61.0, 3)], 49 + 3, 0),
    ],
)
def test_replica_seconds_are_counted_while_somebody_looks(
    seen: list[tuple[float, float | None]], area: float, unknown: float
) -> None:
    figures = replace(LINE, replicas=seen).figures
    assert figures["replica-seconds"] == pytest.approx(area)
    assert figures["seconds not watched"] == pytest.approx(unknown)


def test_a_look_that_failed_is_no_scaling() -> None:
    figures = replace(LINE, replicas=[(0.0, 2), (11.0, None), (12.0, 2), (31.0, 2)]).figures
    assert figures["first new replica after"] is None
    assert figures["most replicas"] == 2


@pytest.mark.parametrize("seen", [[], [(0.0, None), (1.0, None)]])
def test_a_server_that_does_not_say_its_replicas(seen: list[tuple[float, float | None]]) -> None:
    line = Timeline("x", [(1.0, 1.0)], seen, [(1.0, 0.1)], 0, (2.0, 3.0), 4.0)
    assert line.figures["replica-seconds"] is None
    assert line.figures["seconds not watched"] is None
    assert line.figures["TTFT p50 burst"] is None
    assert ["most replicas", "-"] in timeline.table([line])


def test_numbers_of_a_table() -> None:
    line = replace(LINE, first_tokens=[(1.0, 0.123), (12.0, 123.4), (35.0, 2.0)])
    rows = {row[0]: row[1] for row in timeline.table([line])}
    assert (rows["TTFT p50 before"], rows["TTFT p50 burst"], rows["TTFT p50 after"]) == ("0.12", "123", "2")


def test_the_command_writes_a_page_and_an_image(run: Run, tmp_path: Path) -> None:
    run.records[5].error = "http 500"
    store.save(tmp_path / "run", run)
    arguments = ["timeline", str(tmp_path / "run"), "--names", "ours & theirs", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "TTFT p99 burst" in done.output
    page = (tmp_path / "out" / "timeline.html").read_text()
    assert "ours &amp; theirs" in page
    assert page.count("<svg") == 3
    assert "nan" not in page
    assert (tmp_path / "out" / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("burst", "said"), [("1", "--burst is START,END"), ("a,b", "--burst is START,END")])
def test_a_burst_that_is_none(burst: str, said: str, run: Run, tmp_path: Path) -> None:
    store.save(tmp_path / "run", run)
    done = CliRunner().invoke(app, ["timeline", str(tmp_path), "--burst", burst, "--out", str(tmp_path), "--no-png"])
    assert (done.exit_code, said in done.stderr) == (2, True)


def test_as_many_names_as_runs(run: Run, tmp_path: Path) -> None:
    store.save(tmp_path / "run", run)
    done = CliRunner().invoke(app, ["timeline", str(tmp_path), "--names", "a,b", "--no-png"])
    assert (done.exit_code, "1 runs need as many names, not 2" in done.stderr) == (2, True)


def test_arrivals_without_a_burst(run: Run) -> None:
    steady = Run(**{name: getattr(run, name) for name in Run.__slots__} | {"arrivals": type(run.arrivals)("poisson")})
    with pytest.raises(LoadTestError, match="--burst"):
        timeline.of_run(steady, "x")
    assert timeline.of_run(steady, "x", (1.0, 2.0)).burst == (1.0, 2.0)


def test_a_run_of_nothing(run: Run) -> None:
    run.records = []
    with pytest.raises(LoadTestError, match="sent nothing"):
        timeline.of_run(run, "x")


LOOKS = st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(0, 5)), max_size=12).map(
    lambda seen: sorted(dict(seen).items())
)


@given(LOOKS, st.integers(1, 60))
def test_replica_seconds_are_counted_where_somebody_looked(seen: list[tuple[int, int | None]], end: int) -> None:
    line = replace(LINE, replicas=[(float(at), count) for at, count in seen], end=float(end))
    held = {}
    for (at, count), (until, _) in pairwise(seen):
        held |= dict.fromkeys(range(at, min(until, end)), count)
    counts = [count for count in held.values() if count is not None]
    if any(count is not None for _, count in seen):
        assert line.figures["replica-seconds"] == sum(counts)
        assert line.figures["seconds not watched"] == end - len(counts)
        assert line.figures["most replicas"] == max(count for _, count in seen if count is not None)
    else:
        assert line.figures["replica-seconds"] is None


def test_an_image_needs_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LoadTestError, match="or --no-png"):
        timeline.png([LINE], "t", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
