from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert "No throughput is known; no rate" in report._saturation(nothing | {"peak_requests_per_s": None})
    below = {"slo": "s", "low": None, "high": 1.0, "unresolved": []}
    said = " ".join(report.facts(document(run) | {"saturation": nothing, "capacity": below}))
    assert "Peak 1.0 requests/s; no rate was kept up with." in said
    assert "below any rate tried; 1/s missed it." in said


def test_a_points_worst_verdict_marks_its_row(run: Run, tmp_path: Path) -> None:
    report.write(tmp_path, document(run))
    assert '<i class="bad">✗</i> one' in (tmp_path / "report.html").read_text()
    assert "- ✗ failures: 5 of 50 requests" in (tmp_path / "report.md").read_text()


# ---- what servers and people call things -----------------------------------------------------------------------------

HOSTILE = (
    "BODY TITLE </title><script>alert('1')</script> \"><img src=x onerror=alert(2)> &lt; a|b `c` [d](javascript:e)\n# f"
)


def hostile(run: Run) -> report.Document:
    """Everything that somebody else named: the model, the workload, the points, an error, the document itself."""
    found = document(run) | {"name": HOSTILE, "over": HOSTILE, "stopped": HOSTILE}
    for each in found["points"]:
        each["name"] = HOSTILE
        for summary in each["runs"]:
            summary["target"]["model"] = summary["target"]["url"] = summary["arrivals"] = HOSTILE
            summary["load"]["workload"] = HOSTILE
            summary["verdicts"].append({"level": "bad", "name": HOSTILE, "text": HOSTILE})
            summary["by_length"] = [{"tokens": HOSTILE, "sent": 1, "failed": 0, "p50_s": 1.0, "p99_s": None}]
    found["points"] *= 2  # several: curves with legends, and a title for each
    return found


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_name_is_text_wherever_it_stands(run: Run, tmp_path: Path) -> None:
    report.write(tmp_path, hostile(run))
    page = Page((tmp_path / "report.html").read_text())
    assert not {"script", "img"} & set(page.tags)
    assert (page.tags["html"], page.tags["style"], page.tags["h1"]) == (1, 1, 1)
    assert not {name for name in page.attributes if name.startswith("on")}
    texts = [" ".join(text.split()) for text in page.texts]
    assert texts.count(" ".join(HOSTILE.split())) >= 4  # the title, the heading, a column, a verdict


def test_a_name_is_one_cell_of_markdown(run: Run, tmp_path: Path) -> None:
    found = hostile(run)
    for summary in found["points"][0]["runs"]:
        del summary["by_length"]  # its words are ours
    report.write(tmp_path, found)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert [line[:8] for line in lines if line.startswith("#")] == ["# BODY T"]
    head, rule, *rows = [line for line in lines if line.startswith("|")]
    borders = [len(re.findall(r"(?<!\\)\|", row)) for row in (head, rule, *rows)]
    assert (len(rows), len(set(borders))) == (2, 1)
    assert not any(re.search(r"(?<!\\)[<`\[]", line) for line in lines)


def test_half_a_character_of_a_models_name_costs_no_report(run: Run, tmp_path: Path) -> None:
    found = document(run)
    found["points"][0]["runs"][0]["target"]["model"] = json.loads('"half \\ud83d"')
    report.write(tmp_path, found)
    for name in ("report.html", "report.md"):
        assert "half ?" in (tmp_path / name).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text()) == store.plain(found)


@given(title=st.text(max_size=30), body=st.text(max_size=30))
@settings(max_examples=60)
def test_a_page_has_its_title_and_its_body_once(title: str, body: str) -> None:
    empty = report.page("", "")
    made = report.page(title, body)
    assert len(made) == len(empty) + len(escape(title)) + len(body)
    assert f"<title>{escape(title)}</title>" in made
    assert made.endswith(f"{body}\n</html>\n")


def test_the_columns_are_those_of_which_anything_is_known(run: Run) -> None:
    points = document(run)["points"]
    shown = [each.key for each in report.columns(points)]
    assert set(report.TABLE) - set(shown) == {"ttft_p99", "e2e_p99"}  # of 50 requests
    assert shown == sorted(shown, key=report.TABLE.index)
    points[0]["figures"]["goodput"] = [None, None]
    assert "goodput" not in [each.key for each in report.columns(points)]
    other = {"figures": {**points[0]["figures"], "goodput": [1.5, None]}}
    assert "goodput" in [each.key for each in report.columns([*points, other])]


@pytest.mark.parametrize(
    ("verdicts", "met", "said"),
    [
        ([("passed", True), ("unresolved", True)], True, "unresolved"),
        ([("passed", True), ("passed", True)], True, "passed"),
        ([("unresolved", True), ("failed", False)], False, "failed"),
        ([("unresolved", False), ("passed", True)], False, "unresolved"),
    ],
)
def test_the_last_line_says_the_worst_of_all_slos(
    verdicts: list[tuple[str, bool]], met: bool, said: str, tmp_path: Path
) -> None:
    slos = [{"verdict": verdict, "met": kept} for verdict, kept in verdicts]
    points = [{"name": "a", "runs": [{"slos": [slo]}], "figures": {"goodput": [2.5, 0.1], "failed": [None, None]}}
              for slo in slos]  # fmt: skip
    line = json.loads(report.last_line({"kind": "sweep", "name": "n", "points": points, "stopped": None}, tmp_path))
    assert (line["slo_met"], line["slo_verdict"], line["stopped"]) == (met, said, None)
    assert [(each["slo_met"], each["slo_verdict"]) for each in line["points"]] == [(k, v) for v, k in verdicts]
    assert line["points"][0] == {"name": "a", "slo_met": verdicts[0][1], "slo_verdict": verdicts[0][0], "goodput": 2.5}
    assert line["report"] == str(tmp_path / "report.html")
