"""Charts as SVG."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from octavo_loadtest.svg import Chart, Line, draw


def test_charts_leave_out_what_cannot_be_drawn() -> None:
    points = [(1.0, 2.0, 0.1), (2.0, math.inf, 0.0), (0.0, 3.0, math.nan), (4.0, math.nan, 0.0)]
    drawn = draw(Chart("t", "x", "y", (Line("a", points),), log_x=True))
    assert drawn.count("<circle") == 1
    assert draw(Chart("t", "x", "y", (Line("a", []),))) == ""


def test_a_constant_line_can_be_drawn() -> None:
    ElementTree.fromstring(draw(Chart("t", "time (s)", "y", (Line("a", [(0, 0), (1, 0)]), Line("b", [(1, 5)])))))
