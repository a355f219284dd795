from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from octavo_loadtest import report, store
from octavo_loadtest.campaign import Judging, compare, summary_of
from octavo_loadtest.fake_server import Behaviour, running
from octavo_loadtest.figures import missed, point
from octavo_loadtest.job import Target
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run, measure
from octavo_loadtest.server import prepare
from octavo_loadtest.slo import parse


@pytest.fixture(scope="module")
def run() -> Run:
    with running(Behaviour(ttft=0.01, itl=0.002, every_reject=9)) as fake:
        target, calibration = prepare(Target(fake.url, "fake <model>"))
        return measure(Load(scale=0.03, rate=60, requests=50, warmup=0), target, calibration)


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
    assert not re.search(r"https?://(?!127\.0\.0\.1)", page)
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
