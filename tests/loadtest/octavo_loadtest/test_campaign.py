"""Sweeps and the search for a capacity, in simulated time, against a server whose capacity is known."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from octavo_loadtest import campaign as module
from octavo_loadtest import report, store
from octavo_loadtest.campaign import Campaign, Interrupted, Judging, compare, cut_short
from octavo_loadtest.client import Broken
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.slo import parse
from octavo_loadtest.text import Calibration

Simulate = Callable[..., tuple[Run, Any]]
# one slot, 20 ms to the first token and 10 ms for the other five: 33 requests/s at most
SLOW = {"ttft": 0.02, "itl": 0.002, "slots": 1}
LOAD = Load(scale=0.012, rate=20, requests=60, arrivals="constant", warmup=0, drain=600)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def measured(simulated: Simulate, monkeypatch: pytest.MonkeyPatch) -> list[Load]:
    """The loads that were measured, by the simulated server."""
    asked: list[Load] = []

    def measure(load: Load, *_: object) -> Run:
        asked.append(load)
        return simulated(load, **SLOW)[0]

    monkeypatch.setattr(module, "measure", measure)
    return asked


@pytest.fixture
def campaign(tmp_path: Path, said: io.StringIO, measured: list[Load]) -> Campaign:
    return made(tmp_path, said)


def made(folder: Path, said: io.StringIO, slo: str = "ttft=0.15", repeats: int = 1) -> Campaign:
    judging = Judging([parse(slo)], attainment=0.7, repeats=repeats)
    return Campaign(Target("http://x", "m"), Calibration(), judging, folder, Console(file=said, width=200))


def test_a_rate_sweep_finds_the_saturation(campaign: Campaign, tmp_path: Path) -> None:
    document = campaign.rates("rates", LOAD, [12, 30, 60, 90], None, -1)
    found = document["saturation"]
    assert found["last_rate_kept"] == 30
    assert found["peak_output_tokens_per_s"] == pytest.approx(6 / 0.03, rel=0.05)
    assert found["knee_requests_per_s"] == pytest.approx(33, rel=0.1)
    assert document["points"][2]["figures"]["ttft_p50"][0] > 400  # the queue grew
    assert [point["runs"][0]["saturation"]["rising"] for point in document["points"]] == [False, False, True, True]
    assert (tmp_path / "12-s-1" / "records.jsonl").exists()


def test_a_sweep_stops_at_a_bound(campaign: Campaign) -> None:
    document = campaign.rates("rates", LOAD, [12, 60, 90], parse("ttft=0.1"), -1)
    assert "latency bound" in document["stopped"]
    assert [point["name"] for point in document["points"]] == ["12/s", "60/s"]


def test_a_closed_sweep_stops_when_throughput_does_not_rise(campaign: Campaign, measured: list[Load]) -> None:
    document = campaign.concurrencies("levels", LOAD, [1, 2, 4, 8, 16], None, 0.3)
    assert "stopped rising" in document["stopped"]
    assert [(load.concurrency, load.arrivals) for load in measured] == [(1, "constant"), (2, "constant")]


def test_a_sweep_over_concurrency_is_closed_where_nothing_else_is_said(
    campaign: Campaign, measured: list[Load]
) -> None:
    campaign.concurrencies("levels", Load(scale=0.012, requests=20, warmup=0), [1, 2], None, -1)
    assert [(load.concurrency, load.arrivals) for load in measured] == [(1, "closed"), (2, "closed")]


def test_capacity_is_bracketed(tmp_path: Path, said: io.StringIO, measured: list[Load]) -> None:
    document = made(tmp_path, said).capacity("capacity", LOAD, 0.1, 12)
    found = document["capacity"]
    assert 33 <= found["low"] < found["high"] <= 1.1001 * found["low"]  # 60 requests: a short queue may still grow
    assert document["points"][0]["value"] == 20
    assert {load.rate for load in measured} >= {20, 40}


def test_an_undecided_probe_is_asked_again_with_twice_the_requests(campaign: Campaign, measured: list[Load]) -> None:
    few = Load(scale=0.012, rate=20, requests=5, arrivals="constant", warmup=0)
    document = campaign.capacity("capacity", few, 1.0, 1)
    assert [load.requests for load in measured] == [5, 10]
    assert [point["name"] for point in document["points"]] == ["20/s", "20/s again"]


def test_repeats_have_seeds_and_folders_of_their_own(tmp_path: Path, said: io.StringIO, measured: list[Load]) -> None:
    document = made(tmp_path, said, repeats=3).single("three", LOAD)
    assert len({load.seed for load in measured}) == 3
    assert len(document["points"][0]["runs"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three-1", "three-2", "three-3"]
    assert store.read(tmp_path / "three-2").load.seed == measured[1].seed
    assert "TTFT p50" in said.getvalue()


# ---- Ctrl-C -------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupting(simulated: Simulate, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], list[Load]]:
    """`interrupting(n, seconds)`: the n-th run is interrupted so many seconds after its start (0: before it)."""

    def arrange(number: int, seconds: float) -> list[Load]:
        asked: list[Load] = []

        def measure(load: Load, *_: object) -> Run:
            asked.append(load)
            if len(asked) == number and not seconds:
                raise KeyboardInterrupt
            return simulated(load, stop_at=seconds if len(asked) == number else 0.0, **SLOW)[0]

        monkeypatch.setattr(module, "measure", measure)
        return asked

    return arrange


@pytest.mark.parametrize(("seconds", "points"), [(0.0, 2), (1.0, 3)])
def test_ctrl_c_ends_the_search_and_not_one_probe(
    seconds: float, points: int, interrupting: Callable[[int, float], list[Load]], tmp_path: Path, said: io.StringIO
) -> None:
    asked = interrupting(3, seconds)
    document = made(tmp_path, said).capacity("capacity", LOAD, 0.01, 30)
    assert len(asked) == 3
    assert document["stopped"] == "interrupted"
    assert len(document["points"]) == points
    assert "capacity" not in document


def test_ctrl_c_ends_a_sweep_and_keeps_its_points(
    interrupting: Callable[[int, float], list[Load]], tmp_path: Path, said: io.StringIO
) -> None:
    asked = interrupting(2, 1.0)
    document = made(tmp_path, said).rates("rates", LOAD, [12, 60, 90], None, -1)
    assert (len(asked), document["stopped"], len(document["points"])) == (2, "interrupted", 2)
    assert "saturation" not in document


def test_ctrl_c_ends_repeats(
    interrupting: Callable[[int, float], list[Load]], tmp_path: Path, said: io.StringIO
) -> None:
    asked = interrupting(2, 0.0)
    document = made(tmp_path, said, repeats=3).single("three", LOAD)
    assert (len(asked), document["stopped"]) == (2, "interrupted")
    assert len(document["points"][0]["runs"]) == 1


def test_ctrl_c_before_anything_came(
    interrupting: Callable[[int, float], list[Load]], tmp_path: Path, said: io.StringIO
) -> None:
    interrupting(1, 0.0)
    with pytest.raises(Interrupted) as told:
        made(tmp_path, said).point("one", 1.0, LOAD)
    assert told.value.points == []
    with pytest.raises(LoadTestError, match="nothing to report"):
        cut_short({"points": []})


def test_documents_side_by_side() -> None:
    one, two = ({"name": "x", "points": [{"name": str(i), "figures": {}} for i in range(n)]} for n in (1, 2))
    found = compare([("a", one), ("b", two)])
    assert [point["name"] for point in found["points"]] == ["a", "b 0", "b 1"]
    assert [each["name"] for each in found["series"]] == ["a", "b"]
    assert found["name"] == "a against b"


# ---- folders, and what is judged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"attainment": 0.0}, "attainment is a share above 0 and up to 1, not 0"),
        ({"attainment": 99.0}, "not 99"),
        ({"attainment": float("nan")}, "not nan"),
        ({"price": -1.0}, "price must be a number from 0 on"),
        ({"price": float("inf")}, "price must be"),
        ({"repeats": 0}, "repeats must be 1 or more"),
    ],
)
def test_a_judgement_that_makes_no_sense(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LoadTestError, match=sentence):
        Judging(**wrong)
    assert Judging(attainment=1.0).attainment == 1


def test_no_run_replaces_another(tmp_path: Path, said: io.StringIO, measured: list[Load]) -> None:
    """A search for a narrow bracket comes to rates whose first three digits are the same."""
    short = replace(LOAD, requests=5)
    runs = made(tmp_path, said)
    for rate in (33.12, 33.14):
        runs.point(module._probe_name(rate, 0), rate, replace(short, rate=rate))
    assert {store.read(path).load.rate for path in store.runs_of(tmp_path)} == {33.12, 33.14}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("12/s", "12-s-1"),
        ("../../etc/x y", "..-..-etc-x-y-1"),
        ("", "1"),
        ("\x00\n", "1"),
        ("a" * 300, "a" * 60 + "-1"),
        ("münchen 4 at once", "münchen-4-at-once-1"),
    ],
)
def test_a_runs_folder_is_one_level_whatever_it_is_called(
    name: str, folder: str, campaign: Campaign, tmp_path: Path
) -> None:
    campaign.point(name, 1.0, replace(LOAD, requests=3))
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_a_sweep_of_one_request_a_point_has_a_report(campaign: Campaign, tmp_path: Path) -> None:
    document = campaign.rates("rates", replace(LOAD, requests=1), [1, 2], None, -1)
    written = report.write(tmp_path / "report", document)
    assert written["saturation"] == {
        "last_rate_kept": None, "peak_output_tokens_per_s": pytest.approx(200, rel=1e-6), "knee_requests_per_s": None,
    }  # fmt: skip
    assert "no rate was kept up with" in (tmp_path / "report" / "report.md").read_text()


def test_every_point_of_a_sweep_has_a_seed_of_its_own(tmp_path: Path, said: io.StringIO, measured: list[Load]) -> None:
    made(tmp_path, said, repeats=2).rates("rates", replace(LOAD, requests=4), [5, 6, 7], None, -1)
    assert len({load.seed for load in measured}) == len(measured) == 6
    assert [load.rate for load in measured] == [5, 5, 6, 6, 7, 7]


def test_all_repeats_are_in_a_points_figures_and_its_name_is_said_once(
    tmp_path: Path, said: io.StringIO, measured: list[Load]
) -> None:
    (point,) = made(tmp_path, said, repeats=2).single("both", replace(LOAD, requests=50))["points"]
    own = [run["latency"]["ttft"]["headline"]["p50"] * 1e3 for run in point["runs"]]
    assert point["figures"]["ttft_p50"][0] == pytest.approx(sum(own) / 2)
    assert said.getvalue().count("both: done") == 1
    assert "TTFT p99" not in said.getvalue()  # of 50 requests nothing bounds it


def test_a_failing_run_is_a_point_and_the_sweep_goes_on(
    simulated: Simulate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: io.StringIO
) -> None:
    """Every request of the middle one breaks: it has no throughput, and the others keep theirs."""

    def measure(load: Load, *_: object) -> Run:
        broken = Broken("reset") if load.rate == 20 else None
        return simulated(load, **SLOW, fault=lambda number: broken)[0]

    monkeypatch.setattr(module, "measure", measure)
    document = made(tmp_path, said).rates("rates", LOAD, [10, 20, 25], None, -1)
    assert [point["figures"]["failed"][0] for point in document["points"]] == [0, 60, 0]
    assert [point["runs"][0]["slos"][0]["met"] for point in document["points"]] == [True, False, True]
    assert document["saturation"]["last_rate_kept"] == 25
    page = (report.write(tmp_path / "report", document), (tmp_path / "report" / "report.html").read_text())[1]
    assert "60 of 60 requests, infinite in the headline: 60 broken" in page


def test_a_server_that_is_gone_ends_a_campaign(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: io.StringIO
) -> None:
    def measure(*_: object) -> Run:
        raise LoadTestError("a sending process died")

    monkeypatch.setattr(module, "measure", measure)
    with pytest.raises(LoadTestError, match="died"):
        made(tmp_path, said).rates("rates", LOAD, [10, 20], None, -1)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_by_duration_is_asked_again_for_twice_as_long(campaign: Campaign, measured: list[Load]) -> None:
    campaign.capacity("capacity", replace(LOAD, requests=0, duration=0.25), 1.0, 1)
    assert [(load.requests, load.duration) for load in measured] == [(0, 0.25), (0, 0.5)]
