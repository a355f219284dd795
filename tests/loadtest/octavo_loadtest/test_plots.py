from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import plots, report, store
from octavo_loadtest.campaign import Judging, summary_of
from octavo_loadtest.figures import point
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run
from octavo_loadtest.slo import parse
from octavo_loadtest.svg import Chart, draw

Simulate = Callable[..., tuple[Run, Any]]
LOAD = Load(scale=0.02, arrivals="constant", rate=10, requests=120, warmup=0)


@pytest.fixture
def summary(simulated: Simulate) -> dict[str, Any]:
    run, _ = simulated(LOAD, ttft=0.2, itl=0.05)
    run.replicas = [(0.0, 1), (4.0, None), (8.0, 2), (12.0, 2)]
    found: dict[str, Any] = store.plain(summary_of(run, Judging([parse("ttft=1")])))
    return found


def drawn(charts: list[Chart]) -> dict[str, str]:
    return {chart.title: draw(chart) for chart in charts}


def test_a_run_has_a_picture_of_everything(summary: dict[str, Any]) -> None:
    pictures = drawn(plots.of_runs([("", summary)]))
    assert len(pictures) >= 6
    assert all(text.count("<svg") == 1 for text in pictures.values())
    assert not any("nan" in text or "None" in text for text in pictures.values())
    (flying,) = (text for title, text in pictures.items() if "flight" in title.lower())
    assert "replicas" in flying


def test_runs_beside_each_other_have_a_line_each(summary: dict[str, Any]) -> None:
    pictures = drawn(plots.of_runs([("one", summary), ("two", summary)]))
    assert all("one" in text and "two" in text for text in pictures.values() if 'class="legend"' in text)
    assert any('class="legend"' in text for text in pictures.values())


def test_points_become_curves(summary: dict[str, Any]) -> None:
    points = [store.plain(point(f"{rate}/s", rate, [summary])) for rate in (1.0, 2.0, 4.0)]
    pictures = drawn(plots.of_points([{"name": "a", "points": points, "over": "rate"}]))
    assert any(text.count("<circle") >= 3 for text in pictures.values())


def test_infinite_figures_are_left_out(summary: dict[str, Any]) -> None:
    bad = copy.deepcopy(summary)
    bad["latency"]["ttft"]["headline"]["p90"] = "inf"
    points = [store.plain(point(str(i), float(i), [each])) for i, each in enumerate((summary, bad), 1)]
    pictures = drawn(plots.of_points([{"name": "a", "points": points, "over": "rate"}]))
    assert not any("inf" in text.replace("info", "") for text in pictures.values())


def test_a_server_that_says_nothing_of_replicas(simulated: Simulate) -> None:
    run, _ = simulated(LOAD, ttft=0.2, itl=0.0)
    pictures = drawn(plots.of_runs([("", store.plain(summary_of(run, Judging())))]))
    assert not any("replicas" in text for text in pictures.values())


def test_sessions_at_once_are_the_axis_of_a_closed_loop(summary: dict[str, Any]) -> None:
    points = [store.plain(point(f"{level} at once", float(level), [summary])) for level in (1, 2, 4)]
    closed = drawn(plots.of_points([{"name": "a", "points": points, "over": "concurrency"}]))
    rates = drawn(plots.of_points([{"name": "a", "points": points, "over": "rate"}]))
    assert "Throughput against requests at once" in closed
    assert "Throughput against requests at once" not in rates
    assert "Goodput against rate" in rates
    assert "Goodput against rate" not in closed
    assert closed["Throughput against requests at once"].count("<circle") == 3


@given(st.lists(st.integers(), max_size=40), st.integers(2, 9))
def test_of_many_runs_some_are_drawn_the_first_and_the_last_among_them(items: list[int], most: int) -> None:
    numbered = list(enumerate(items))
    found = report._spread(numbered, most)
    assert found == sorted(set(found))
    assert len(found) == min(len(items), most)
    assert (found[:1], found[-1:]) == (numbered[:1], numbered[-1:])
