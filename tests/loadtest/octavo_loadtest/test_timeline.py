from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from octavo_loadtest import store, timeline
from octavo_loadtest.cli import app
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.fake_server import Behaviour, running
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run, measure
from octavo_loadtest.server import prepare
from octavo_loadtest.timeline import Timeline


@pytest.fixture(scope="module")
def run() -> Run:
    """Five times the rate in the middle fifth of it."""
    with running(Behaviour(ttft=0.01, itl=0.002)) as fake:
        target, calibration = prepare(Target(fake.url, "fake"))
        load = Load(scale=0.03, rate=15, arrivals="step:factor=5,at=0.4,share=0.2", requests=80, warmup=0)
        return measure(load, target, calibration)


def test_a_run_shows_its_burst(run: Run) -> None:
    line = timeline.of_run(run, "fake")
    start, end = line.burst
    length = 80 / (15 * 1.8)
    assert start == pytest.approx(0.4 * length)
    assert end == pytest.approx(0.6 * length)
    length = max(record.scheduled for record in run.records) / 1e9
    assert sum(rate for _, rate in line.offered) * length / len(line.offered) == pytest.approx(80, abs=1)
    assert len(line.first_tokens) == 80
    assert line.figures["failed"] == 0
    assert 0 < (line.figures["TTFT p50 burst"] or 0) < 5


def test_figures_of_a_burst() -> None:
    line = Timeline(
        "x",
        offered=[(5.0, 1.0)],
        replicas=[(0.0, 1), (10.0, 1), (14.0, 2), (15.0, 4), (40.0, 1)],
        first_tokens=[(1.0, 0.1), (2.0, 0.3), (12.0, 2.0), (35.0, 0.2)],
        failed=0,
        burst=(10.0, 30.0),
        end=50.0,
    )
    figures = line.figures
    assert figures["first new replica after"] == 4
    assert figures["most replicas"] == 4
    assert figures["replica-seconds"] == 14 * 1 + 1 * 2 + 25 * 4  # the watch ended at 40
    assert figures["seconds not watched"] == 10
    assert figures["fewest again after"] == 10
    assert (figures["TTFT p50 before"], figures["TTFT p99 burst"], figures["TTFT p99 after"]) == (0.1, 2.0, 0.2)


def test_a_server_that_does_not_say_its_replicas(run: Run) -> None:
    line = Timeline("x", [(1.0, 1.0)], [], [(1.0, 0.1)], 0, (2.0, 3.0), 4.0)
    assert line.figures["replica-seconds"] is None
    assert line.figures["TTFT p50 burst"] is None
    assert ["most replicas", "-"] in timeline.table([line])


def test_the_command_writes_a_page_and_an_image(run: Run, tmp_path: Path) -> None:
    store.save(tmp_path / "run", run)
    arguments = ["timeline", str(tmp_path / "run"), "--names", "ours & theirs", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "TTFT p99 burst" in done.output
    page = (tmp_path / "out" / "timeline.html").read_text()
    assert "ours &amp; theirs" in page
    assert page.count("<svg") == (3 if run.replicas else 2)
    assert (tmp_path / "out" / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_arrivals_without_a_burst(run: Run) -> None:
    steady = Run(**{name: getattr(run, name) for name in Run.__slots__} | {"arrivals": type(run.arrivals)("poisson")})
    with pytest.raises(LoadTestError, match="--burst"):
        timeline.of_run(steady, "x")
    assert timeline.of_run(steady, "x", (1.0, 2.0)).burst == (1.0, 2.0)
