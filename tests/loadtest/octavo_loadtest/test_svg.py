"""Charts as SVG."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from octavo_loadtest.svg import Chart, Line, draw, number


def test_charts_leave_out_what_cannot_be_drawn() -> None:
    points = [(1.0, 2.0, 0.1), (2.0, math.inf, 0.0), (0.0, 3.0, math.nan), (4.0, math.nan, 0.0)]
    drawn = draw(Chart("t", "x", "y", (Line("a", points),), log_x=True))
    assert drawn.count("<circle") == 1
    assert draw(Chart("t", "x", "y", (Line("a", []),))) == ""


def test_a_constant_line_can_be_drawn() -> None:
    ElementTree.fromstring(draw(Chart("t", "time (s)", "y", (Line("a", [(0, 0), (1, 0)]), Line("b", [(1, 5)])))))


def path(points: list[tuple[float, float | None]], **style: bool) -> list[str]:
    return re.findall(r'<path [^>]*d="([^"]*)"', draw(Chart("t", "time", "y", (Line("l", points, **style),))))


def test_a_line_breaks_where_a_value_is_missing() -> None:
    whole = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    assert len(path(whole)) == 1
    gap: list[tuple[float, float | None]] = [*whole[:2], (1.5, None), *whole[2:]]
    assert [each.count("L") for each in path(gap)] == [1, 1]
    assert len(path([(0.0, None), *whole, (4.0, None)])) == 1


def test_a_single_point_between_gaps_is_a_dot() -> None:
    chart = Chart("t", "time", "y", (Line("l", [(0.0, 1.0), (1.0, None), (2.0, 3.0)], dots=False),))
    assert draw(chart).count("<circle") == 2


def test_steps_are_drawn_as_steps() -> None:
    (line,) = path([(0.0, 1.0), (1.0, 2.0)], steps=True)
    assert "H" in line
    assert "L" not in line


@pytest.mark.parametrize("points", [[], [(0.0, None)], [(0.0, math.inf)], [(0.0, math.nan)]])
def test_nothing_to_draw_is_no_chart(points: list[tuple[float, float | None]]) -> None:
    assert draw(Chart("t", "x", "y", (Line("l", points),))) == ""


def test_a_log_axis_leaves_out_what_is_not_positive() -> None:
    chart = Chart("t", "x", "y", (Line("l", [(0.0, 1.0), (1.0, 10.0), (2.0, 0.0), (3.0, 1000.0)]),), log_y=True)
    assert draw(chart).count("<circle") == 3


def test_error_bars_and_markers() -> None:
    line = Line("l", [(1.0, 5.0, 1.0), (2.0, 6.0, math.nan)])
    chart = Chart("t", "x", "y", (line,), markers=((1.5, "here"), (9, "no")))
    text = draw(chart)
    assert text.count('<line class="line') == 1
    assert ">here<" in text
    assert ">no<" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1200, "1200"), (12_000, "12k"), (2.5e6, "2.5M"), (3e9, "3G"), (0.00012, "1.2e-04"), (0.5, "0.5")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_names_are_text_and_not_markup() -> None:
    text = draw(Chart("<t>", "<x>", "<y>", (Line("<l>", [(0.0, 1.0)]),), note="<n>"))
    assert not re.search(r"<(t|x|y|l|n)>", text)
