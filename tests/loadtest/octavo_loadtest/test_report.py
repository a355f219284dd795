from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from octavo_loadtest import report, store
from octavo_loadtest.campaign import Judging, compare, summary_of
from octavo_loadtest.client import Broken
from octavo_loadtest.figures import BY_KEY, missed, point
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.slo import parse


@pytest.fixture
def run(simulated: Callable[..., tuple[Run, Any]]) -> Run:
    """Every ninth request is refused; one may be in flight, so that others are sent late."""
    load = Load(scale=0.03, rate=60, requests=50, warmup=0, concurrency=1, arrivals="poisson")
    broken = Broken("connection closed")
    return simulated(load, ttft=0.01, itl=0.002, fault=lambda number: broken if number % 9 == 8 else None)[0]


def document(run: Run, definitions: str = "octavo") -> report.Document:
    judging = Judging([parse("ttft=0.001")], definitions=definitions, price=2.0)
    summary = store.plain(summary_of(run, judging))
    return {"kind": "load", "name": "a <load>", "points": [store.plain(point("one", 60.0, [summary, summary]))]}


def test_a_saved_run_gives_the_same_figures(run: Run, tmp_path: Path) -> None:
    store.save(tmp_path / "run", run)
    again = store.read(tmp_path / "run")
    assert again.records == run.records
    first, second = document(run), document(again)
    for each in (first, second):  # lags are saved to the microsecond
        for summary in each["points"][0]["runs"]:
            summary.pop("client")
            summary.pop("verdicts")
    assert first == second


def test_definitions_change_the_figures_of_the_same_records(run: Run) -> None:
    def ttft(name: str) -> float:
        found = document(run, name)["points"][0]["runs"][0]["latency"]["ttft"]["answered_only"]["p50"]
        assert isinstance(found, float)
        return found

    assert ttft("vllm") < ttft("guidellm") < ttft("octavo")  # an empty chunk; the send; the schedule


def test_the_page_is_whole_and_needs_nothing_else(run: Run, tmp_path: Path) -> None:
    report.write(tmp_path, document(run))
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;load&gt;" in page
    assert not re.search(r"https?://(?!simulated)", page)
    assert not re.search(r"\bnan\b|\binf\b", page.split("</style>")[1].split("<details>")[0])
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_markdown_and_the_last_line(run: Run, tmp_path: Path) -> None:
    made = report.write(tmp_path, document(run))
    table = (tmp_path / "report.md").read_text()
    assert "| one |" in table
    assert "infinite in the headline" in table
    line = json.loads(report.last_line(made, tmp_path))
    assert line["slo_met"] is False
    assert missed(made) == ["one: ttft=0.001"] * 2
    assert line["points"][0]["failed"] == 5


def test_documents_side_by_side(run: Run, tmp_path: Path) -> None:
    both = compare([("a", document(run)), ("b", document(run, "vllm"))])
    made = report.write(tmp_path, both)
    assert [each["name"] for each in made["points"]] == ["a", "b"]
    assert "a against b" in (tmp_path / "report.html").read_text()


def test_the_last_line_has_the_figures_of_every_point(run: Run, tmp_path: Path) -> None:
    """Of one load as of a sweep: scripts read the same keys."""
    keys = {
        "requests",
        "output_tokens",
        "ttft_p50",
        "ttft_p90",
        "tpot_p50",
        "e2e_p50",
        "failed",
        "attainment",
        "goodput",
    }
    for kind in ("load", "sweep", "matrix"):
        line = json.loads(report.last_line(document(run) | {"kind": kind}, tmp_path))
        assert line["kind"] == kind
        assert keys <= set(line["points"][0])
        assert (line["points"][0]["slo_met"], line["points"][0]["slo_verdict"]) == (False, "failed")


@pytest.mark.parametrize(
    ("value", "text"),
    [([None, None], "–"), (["inf", None], "∞"), ([math.inf, None], "∞"), ([1234.56, None], "1,234.6"),
     ([12.34, 0.4], "12.3 ±0.4"), ([12.34, math.nan], "12.3")],
)  # fmt: skip
def test_cells(value: list[Any], text: str) -> None:
    assert report.cell(BY_KEY["ttft_p50"], value) == text


def test_what_a_document_says_of_itself(run: Run) -> None:
    found = document(run) | {
        "stopped": "throughput stopped rising",
        "saturation": {"last_rate_kept": 3, "knee_requests_per_s": 2.5, "peak_output_tokens_per_s": 9.0},
        "capacity": {"slo": "s", "low": 2.0, "high": None, "unresolved": [2.0]},
    }
    said = " ".join(report.facts(found))
    for part in (
        "Stopped: throughput stopped rising.",
        "Peak 9.0 output tokens/s; the last rate kept up with was 3/s; the curve bends at 2.50 requests/s.",
        "Capacity under s: 2 requests/s; no rate missed it; unresolved at 2.",
    ):
        assert part in said
    nothing = {"last_rate_kept": None, "knee_requests_per_s": None, "peak_requests_per_s": 1.0}
    below = {"slo": "s", "low": None, "high": 1.0, "unresolved": []}
    said = " ".join(report.facts(document(run) | {"saturation": nothing, "capacity": below}))
    assert "Peak 1.0 requests/s; no rate was kept up with." in said
    assert "below any rate tried; 1/s missed it." in said


def test_a_points_worst_verdict_marks_its_row(run: Run, tmp_path: Path) -> None:
    report.write(tmp_path, document(run))
    assert '<i class="bad">✗</i> one' in (tmp_path / "report.html").read_text()
    assert "- ✗ failures: 5 of 50 requests" in (tmp_path / "report.md").read_text()
