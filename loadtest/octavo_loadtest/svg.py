"""Line charts as SVG: no dependency, sharp at any size, and in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 46
Points = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """One series. Points may have a third value: half the height of an error bar. Lines break where a value is None."""

    name: str
    points: Points
    colour: int = 0  # of the palette, in the page's style
    dashed: bool = False
    dots: bool = True
    line: bool = True
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its labels. Points that are not finite, or not positive on a log axis, are left out."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    note: str = ""
    log_x: bool = False
    log_y: bool = False
    markers: tuple[tuple[float, str], ...] = ()  # vertical lines: x, text


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        a, b, v = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (v - a) / (b - a) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _nice_ticks(self.low, self.high)


def draw(chart: Chart) -> str:
    """The chart as a <figure>; empty where there is nothing to draw."""
    lines = [(line, _pieces(_kept(line.points, chart))) for line in chart.lines]
    lines = [(line, pieces) for line, pieces in lines if pieces]
    if not lines:
        return ""
    points = [point for _, pieces in lines for piece in pieces for point in piece]
    x = _axis([p[0] for p in points], LEFT, WIDTH - RIGHT, chart.log_x, _is_time(chart.x))
    y = _axis([value for p in points for value in _reach(p)], HEIGHT - BOTTOM, TOP, chart.log_y, True)
    body = [_grid(chart, x, y), *(_marker(x, at, text) for at, text in chart.markers if x.low <= at <= x.high)]
    body += [_line(line, piece, x, y) for line, pieces in lines for piece in pieces]
    note = f"<p>{escape(chart.note)}</p>" if chart.note else ""
    named = {line.name: line for line, _ in lines}  # lines with the same name share one entry
    legend = _legend([*named.values()]) if len(named) > 1 else ""
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
    caption = f"<figcaption>{escape(chart.title)}</figcaption>"
    return f"<figure>{caption}{note}{legend}{head}{''.join(body)}</svg></figure>"


def _is_time(label: str) -> bool:
    return label.startswith("time")


def _kept(points: Points, chart: Chart) -> list[tuple[float, ...]]:
    """Points as numbers; one without a value, which breaks a line, has NaN."""

    def drawable(value: float | None, log: bool) -> bool:
        return value is None or (math.isfinite(value) and (value > 0 or not log))

    kept = [p for p in points if drawable(p[0], chart.log_x) and drawable(p[1], chart.log_y)]
    return [tuple(math.nan if value is None else value for value in p) for p in kept]


def _pieces(points: list[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """The parts of a line between its gaps."""
    found: list[list[tuple[float, ...]]] = [[]]
    for point in points:
        if math.isnan(point[1]):
            found.append([])
        else:
            found[-1].append(point)
    return [piece for piece in found if piece]


def _reach(point: tuple[float, ...]) -> tuple[float, ...]:
    error = point[2] if len(point) > 2 and math.isfinite(point[2]) else 0.0
    return (point[1] - error, point[1] + error) if error < point[1] else (point[1],)


def _axis(values: list[float], start: float, end: float, log: bool, from_zero: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.1, high * 1.1
        return Axis(low, high, start, end, True)
    if from_zero or low < 0.35 * high:
        low = min(low, 0.0)
    span = (high - low) or abs(high) or 1.0
    return Axis(low if low == 0 else low - 0.04 * span, high + 0.04 * span, start, end, False)


def _nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    raw = (high - low) / most
    base = 10 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    if high / low < 8:
        return [tick for tick in _nice_ticks(low, high) if tick > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) >= 3:
            return found if len(found) <= 8 else found[::2]
    return found


def _grid(chart: Chart, x: Axis, y: Axis) -> str:
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(value)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{escape(chart.x)}</text>')
    parts.append(f'<text class="axis" transform="translate(15 {middle}) rotate(-90)">{escape(chart.y)}</text>')
    return "".join(parts)


def _marker(x: Axis, at: float, text: str) -> str:
    left = x(at) > (LEFT + WIDTH) * 0.6
    anchor, shift = ("end", -5) if left else ("start", 5)
    return (
        f'<line class="marker" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="tick" x="{x(at) + shift:.1f}" y="{TOP + 11}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(line: Line, points: list[tuple[float, ...]], x: Axis, y: Axis) -> str:
    parts = []
    style = f'class="line c{line.colour % 8}{" dashed" if line.dashed else ""}"'
    if line.line and len(points) > 1:
        parts.append(f'<path {style} d="{_path(line, points, x, y)}"/>')
    for p in points:
        if len(p) > 2 and math.isfinite(p[2]) and p[2] > 0:
            low, high = y(max(p[1] - p[2], y.low)), y(min(p[1] + p[2], y.high))
            parts.append(f'<line {style} x1="{x(p[0]):.1f}" x2="{x(p[0]):.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        if line.dots or len(points) == 1:
            tip = f"{line.name}: {number(p[1])} at {number(p[0])}"
            radius = 3.2 if line.line else 1.8
            parts.append(
                f'<circle class="dot c{line.colour % 8}" cx="{x(p[0]):.1f}" cy="{y(p[1]):.1f}" r="{radius}">'
                f"<title>{escape(tip)}</title></circle>"
            )
    return "".join(parts)


def _path(line: Line, points: list[tuple[float, ...]], x: Axis, y: Axis) -> str:
    first, *rest = points
    step = "H{:.1f}V{:.1f}" if line.steps else "L{:.1f} {:.1f}"
    return f"M{x(first[0]):.1f} {y(first[1]):.1f}" + "".join(step.format(x(p[0]), y(p[1])) for p in rest)


def _legend(lines: list[Line]) -> str:
    items = "".join(
        f'<span><i class="key c{line.colour % 8}{" dashed" if line.dashed else ""}"></i>{escape(line.name)}</span>'
        for line in lines
    )
    return f'<div class="legend">{items}</div>'


def number(value: float) -> str:
    """A short number: 1200 -> 1.2k, 0.00012 -> 1.2e-04."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, divisor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.4g}{letter}"
    return f"{value:.4g}" if size >= 1e-3 else f"{value:.1e}"
