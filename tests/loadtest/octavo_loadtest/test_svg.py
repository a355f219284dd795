"""Charts as SVG."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Chart, Line, draw, number


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


@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e5), st.booleans())
def test_ticks_lie_on_their_axis_and_are_few(low: float, factor: float, log: bool) -> None:
    axis = Axis(low, low * factor, 0.0, 100.0, log)
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    assert 2 <= len(ticks) <= 8
    assert (axis(low), axis(low * factor)) == pytest.approx((0.0, 100.0))


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=9), st.booleans())
def test_all_that_is_drawn_is_inside_the_frame(points: list[tuple[float, float]], log: bool) -> None:
    text = draw(Chart("t", "x", "y", (Line("l", points),), log_x=log, log_y=log))
    ElementTree.fromstring(text)
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([^"]*)" cy="([^"]*)"', text)]
    assert len(dots) == len(points)
    assert all(LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for x, y in dots)
    rising = sorted(zip(points, dots, strict=True))
    assert [x for _, (x, _) in rising] == sorted(x for x, _ in dots)


@given(st.floats(-1e12, 1e12).filter(lambda value: abs(value) > 1e-6))
def test_a_short_number_says_the_value(value: float) -> None:
    text = number(value)
    factor = {"G": 1e9, "M": 1e6, "k": 1e3}.get(text[-1], 1.0)
    assert float(text.rstrip("GMk")) * factor == pytest.approx(value, rel=0.06 if abs(value) < 1e-3 else 6e-4)
    assert len(text) <= 10


def test_a_markers_text_stays_in_the_frame() -> None:
    chart = Chart("t", "x", "y", (Line("l", [(0.0, 1.0), (10.0, 2.0)]),), markers=((1.0, "early"), (9.0, "late")))
    anchors = re.findall(r'text-anchor="(start|end)">(early|late)<', draw(chart))
    assert anchors == [("start", "early"), ("end", "late")]


def test_lines_of_one_name_share_an_entry() -> None:
    lines = [
        Line(name, [(0.0, 1.0), (1.0, 2.0)], dashed=dashed) for name, dashed in (("a", False), ("a", True), ("b", True))
    ]
    text = draw(Chart("t", "x", "y", tuple(lines)))
    assert text.count('<i class="key') == 2
    assert text.count('<path class="line c0 dashed"') == 2
    assert "legend" not in draw(Chart("t", "x", "y", tuple(lines[:2])))
