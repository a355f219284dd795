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


# ---- which figures stand where --------------------------------------------------------------------------------------


def measured(value: float, **figures: float | None) -> dict[str, Any]:
    keys = ("offered", "offered_prompt_tokens", "output_tokens", "ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90",
            "normalized_mean", "goodput", "tokens_per_dollar")  # fmt: skip
    return {"value": value, "figures": {key: [figures.get(key), None] for key in keys}}


def lines(charts: list[Chart]) -> dict[str, list[tuple[str, list[Any]]]]:
    """Title -> names and points (x, y) of the lines."""
    return {chart.title: [(line.name, [tuple(p[:2]) for p in line.points]) for line in chart.lines] for chart in charts}


def test_each_curve_is_of_its_own_figures() -> None:
    figures: dict[str, float | None] = dict(zip(measured(0.0)["figures"], map(float, range(1, 11)), strict=True))
    found = lines(plots.of_points([{"name": "a", "points": [measured(8.0, **figures)], "over": "rate"}]))
    assert {title: [(name, points[0]) for name, points in each] for title, each in found.items()} == {
        "Throughput against offered tokens": [("output tokens/s", (2, 3))],
        "Normalized latency against offered tokens": [("ms per output token", (2, 8))],
        "Latency against throughput": [("p50", (3, 4)), ("p90", (3, 5))],
        "Time per output token": [("p50", (1, 6)), ("p90", (1, 7))],
        "Goodput against rate": [("good requests/s", (1, 9))],
        "Tokens for a dollar": [("output tokens/$", (1, 10))],
    }
    found = lines(plots.of_points([{"name": "a", "points": [measured(8.0, **figures)], "over": "concurrency"}]))
    assert {title: [points[0] for _, points in each] for title, each in found.items()} == {
        "Throughput against requests at once": [(8, 3)],
        "Time to first token": [(8, 4)],
        "Latency against throughput": [(3, 4), (3, 5)],
        "Time per output token": [(8, 6), (8, 7)],
        "Tokens for a dollar": [(8, 10)],
    }


def test_points_of_a_search_are_drawn_by_their_rate_and_not_by_when_they_were_tried() -> None:
    points = [measured(float(rate), offered=rate, goodput=10 - rate) for rate in (4, 8, 6, 5)]
    found = lines(plots.of_points([{"name": "a", "points": points, "over": "rate"}]))
    assert found["Goodput against rate"][0][1] == [(4, 6), (5, 5), (6, 4), (8, 2)]


def test_series_side_by_side_have_a_colour_each_and_both_of_a_pair_the_same() -> None:
    series = [{"name": name, "points": [measured(1.0, output_tokens=1, ttft_p50=1, ttft_p90=2)], "over": "rate"}
              for name in ("x", "y")]  # fmt: skip
    (chart,) = [each for each in plots.of_points(series) if each.title == "Latency against throughput"]
    assert [(line.name, line.colour, line.dashed) for line in chart.lines] == [
        ("x p50", 0, False), ("y p50", 1, False), ("x p90", 0, True), ("y p90", 1, True),
    ]  # fmt: skip


def test_a_rate_beside_a_closed_loop_has_only_what_both_have() -> None:
    series = [{"name": over, "points": [measured(1.0)], "over": over} for over in ("rate", "concurrency")]
    assert "Goodput against rate" in lines(plots.of_points(series))
    assert "Throughput against requests at once" not in lines(plots.of_points(series))


def test_what_the_client_hid_is_drawn_where_there_is_any(simulated: Simulate) -> None:
    """Two lines of the first token, from the schedule and from the send, and only where these differ."""
    titles = {}
    for at_once in (0, 1):
        load = Load(scale=0.02, arrivals="constant", rate=10, requests=40, warmup=0, concurrency=at_once)
        run, _ = simulated(load, ttft=0.2, itl=0.0)
        made = lines(plots.of_runs([("", store.plain(summary_of(run, Judging())))]))
        titles[at_once] = [name for name, _ in made["Time to first token"]]
        ((_, lag),) = made["Schedule lag"]
        assert max(late for _, late in lag) == pytest.approx(39 * 100 if at_once else 0, abs=0.5)  # ms: 0.1 s each
        ((_, waits),) = made["TTFT by arrival"]
        assert waits[-1] == pytest.approx((3.9, 200 + (3900 if at_once else 0)), abs=0.5)
    assert titles == {0: [""], 1: ["from the schedule", "from the send"]}


def test_the_steady_part_is_marked(summary: dict[str, Any]) -> None:
    (chart,) = [each for each in plots.of_runs([("", summary)]) if each.title == "In flight"]
    assert [text for _, text in chart.markers] == ["steady from", "to"]
    steady = summary["throughput"]["steady"]
    assert [at for at, _ in chart.markers] == [steady["start"], steady["end"]]
    nothing = copy.deepcopy(summary)
    nothing["throughput"]["steady"] |= {"start": None, "end": None}
    (chart,) = [each for each in plots.of_runs([("", nothing)]) if each.title == "In flight"]
    assert chart.markers == ()
