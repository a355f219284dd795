"""Charts as SVG."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
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


HOSTILE = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=12
)


@given(title=HOSTILE, label=HOSTILE, name=HOSTILE, note=HOSTILE, marker=HOSTILE)
@settings(max_examples=60)
def test_whatever_things_are_called_it_is_xml_that_says_so(
    title: str, label: str, name: str, note: str, marker: str
) -> None:
    lines = (Line(name, [(1.0, 1.0)]), Line(f"{name}'", [(2.0, 2.0)]))
    drawn = ElementTree.fromstring(draw(Chart(title, label, f"y{label}", lines, note, markers=((1.5, marker),))))
    (svg,) = drawn.iter("svg")
    assert (svg.get("aria-label"), drawn.findtext("figcaption")) == (title, title)
    assert [each.text or "" for each in drawn.iter("p")] == ([note] if note else [])
    assert [span.find("i").tail or "" for span in drawn.iter("span")] == [name, f"{name}'"]  # type: ignore[union-attr]
    assert [each.text or "" for each in drawn.iter("text") if each.get("class") == "axis"] == [label, f"y{label}"]
    assert [each.findtext("title") for each in drawn.iter("circle")] == [f"{name}: 1 at 1", f"{name}': 2 at 2"]
    assert marker in [each.text or "" for each in drawn.iter("text") if each.get("class") == "tick"]


def ticks(chart: Chart, anchor: str) -> list[tuple[str, float]]:
    """Text and pixel of an axis's ticks: x has its in the middle, y at their end."""
    drawn = ElementTree.fromstring(draw(chart))
    found = [each for each in drawn.iter("text") if each.get("text-anchor") == anchor and each.get("class") == "tick"]
    return [(each.text or "", float(each.get("x" if anchor == "middle" else "y") or 0)) for each in found]


def dots(chart: Chart) -> list[tuple[float, float]]:
    drawn = ElementTree.fromstring(draw(chart))
    return [(float(each.get("cx") or 0), float(each.get("cy") or 0)) for each in drawn.iter("circle")]


def test_a_point_stands_at_the_ticks_that_say_its_values() -> None:
    for log in (False, True):
        chart = Chart("t", "time", "y", (Line("l", [(10.0, 100.0), (1000.0, 1.0)]),), log_x=log, log_y=log)
        across, up = dict(ticks(chart, "middle")), dict(ticks(chart, "end"))
        (x, y), (x2, _) = dots(chart)
        assert (x2, y) == pytest.approx((across["1000"], up["100"] - 4), abs=0.11)  # a text's foot is 4 lower
        if log:
            assert x == pytest.approx(across["10"], abs=0.11)
            assert across["100"] == pytest.approx((across["10"] + across["1000"]) / 2, abs=0.11)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 13, False, [0, 2.5, 5, 7.5, 10, 12.5]),
        (95, 101, False, [95, 96, 97, 98, 99, 100, 101]),
        (-3, 3, False, [-3, -2, -1, 0, 1, 2, 3]),
        (1, 1000, True, [1, 10, 100, 1000]),
        (1, 20, True, [1, 3, 10]),
        (2, 16, True, [2, 5, 10]),
        (3, 9, True, [3, 4, 5, 6, 7, 8, 9]),
        (1, 1e8, True, [1, 100, 1e4, 1e6, 1e8]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert Axis(low, high, 0, 1, log).ticks() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "values", "from_zero"),
    [("rate", [50.0, 60.0], False), ("time (s)", [50.0, 60.0], True), ("rate", [5.0, 60.0], True)],
)
def test_an_axis_begins_at_zero_where_that_costs_little(x: str, values: list[float], from_zero: bool) -> None:
    chart = Chart("t", x, "y", (Line("l", [(value, 1.0) for value in values]),))
    first, at = ticks(chart, "middle")[0]
    assert (first == "0") == from_zero
    assert (at == LEFT) == from_zero


def test_an_error_bar_is_as_long_as_it_says() -> None:
    line = Line("l", [(1.0, 50.0, 10.0), (2.0, 100.0, 0.0), (3.0, 20.0, 30.0)], line=False)
    chart = Chart("t", "time", "y", (line,))
    up = {text: y - 4 for text, y in ticks(chart, "end")}
    pixel = (up["0"] - up["100"]) / 100
    bars = re.findall(r'<line class="line c0" x1="([\d.]+)" x2="\1" y1="([\d.]+)" y2="([\d.]+)"', draw(chart))
    lengths = [float(low) - float(high) for _, low, high in bars]
    assert lengths == pytest.approx([20 * pixel, 50 * pixel], abs=0.3)  # the third ends at the axis: 0 to 50
    assert float(bars[1][1]) == pytest.approx(up["0"], abs=0.11)


def test_only_markers_within_the_picture_are_drawn() -> None:
    markers = tuple((float(at), f"m{at}") for at in (-1, 0, 5, 10, 11))
    text = draw(Chart("t", "time", "y", (Line("l", [(0.0, 1.0), (10.0, 2.0)]),), markers=markers))
    assert re.findall(r">(m-?\d+)<", text) == ["m0", "m5", "m10"]


def test_more_lines_than_colours_begin_again() -> None:
    lines = tuple(Line(f"l{i}", [(0.0, float(i)), (1.0, 2.0)], colour=i) for i in range(10))
    text = draw(Chart("t", "time", "y", lines))
    assert re.findall(r'<path class="line (c\d)"', text) == [f"c{i % 8}" for i in range(10)]
    assert re.findall(r'<i class="key (c\d)"', text) == [f"c{i % 8}" for i in range(10)]


def test_an_axis_is_as_high_as_its_bars() -> None:
    """Of 50 +- 40 the upper end is over every value; 20 +- 30 would reach below zero, and ends at the axis."""
    chart = Chart("t", "time", "y", (Line("l", [(1.0, 50.0, 40.0), (2.0, 20.0, 30.0)], line=False),))
    bars = re.findall(r'<line class="line c0" x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', draw(chart))
    ((low, high), (foot, _)) = [(float(a), float(b)) for a, b in bars]
    assert TOP < high < low < HEIGHT - BOTTOM
    assert high == pytest.approx(TOP + 0.04 / 1.04 * (HEIGHT - BOTTOM - TOP), abs=0.1)  # 90, and 4 % above it
    assert foot == HEIGHT - BOTTOM


def test_titles_of_axes_stand_in_the_middle_of_theirs() -> None:
    text = draw(Chart("t", "across", "up", (Line("l", [(0.0, 1.0)]),)))
    ((x, y),) = re.findall(r'<text class="axis" x="([\d.]+)" y="([\d.]+)">across<', text)
    assert (float(x), float(y)) == ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8)
    ((x, y),) = re.findall(r'translate\(([\d.]+) ([\d.]+)\) rotate\(-90\)">up<', text)
    assert (float(x), float(y)) == (15, (TOP + HEIGHT - BOTTOM) / 2)
