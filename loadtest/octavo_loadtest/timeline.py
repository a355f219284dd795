"""A burst as a picture and a table: offered load, replicas and first tokens over the time of one or several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.measure import Run
from octavo_loadtest.record import Record
from octavo_loadtest.report import page
from octavo_loadtest.stats import quantile
from octavo_loadtest.svg import Chart, Line, draw

NS = 1e9
BIN = 2.0  # s of offered load in one point
PHASES = ("before", "burst", "after")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run over time, in seconds from its start.

    Attributes:
        offered: (time, requests per second due).
        replicas: (time, replicas that answered; None where the server did not say). The last is the end of the watch.
        first_tokens: (time due, seconds to the first token) of each request that was due; infinite for one that got no
            whole answer, or was never sent.
        failed: how many of these there are.
        burst: when the rate rose and fell.
    """

    name: str
    offered: list[tuple[float, float]]
    replicas: list[tuple[float, float | None]]
    first_tokens: list[tuple[float, float]]
    failed: int
    burst: tuple[float, float]
    end: float

    @property
    def figures(self) -> dict[str, float | None]:
        """What a burst is judged by; times in seconds, None where it did not happen."""
        start, end = self.burst
        seen = [(at, count) for at, count in self.replicas if count is not None]
        counts = [count for _, count in seen]
        before = [count for at, count in seen if at < start] or counts[:1]
        ready = [at for at, count in seen if at >= start and count > before[-1]]
        back = [at for at, count in seen if at >= end and count <= min(counts)]
        area, watched = _area(self.replicas, self.end)
        found: dict[str, float | None] = {
            "first new replica after": ready[0] - start if ready else None,
            "most replicas": max(counts, default=None),
            "replica-seconds": area if seen else None,
            "seconds not watched": self.end - watched if seen else None,
            "fewest again after": back[0] - end if back else None,
            "failed": float(self.failed),
        }
        for phase, (low, high) in zip(PHASES, ((0.0, start), (start, end), (end, math.inf)), strict=True):
            waits = np.array([wait for at, wait in self.first_tokens if low <= at < high])
            for share in (0.5, 0.99):
                value = float(quantile(waits, share)) if len(waits) else None
                found[f"TTFT p{share * 100:.0f} {phase}"] = value
        return found


def of_run(run: Run, name: str, burst: tuple[float, float] | None = None) -> Timeline:
    """The time line of a stored run.

    Args:
        burst: when the rate rose and fell (s); by default what the run's `step` arrivals say.

    Raises:
        LoadTestError: no burst is given and the arrivals have none.
    """
    due = np.array([record.scheduled for record in run.records]) / NS
    if not len(due):
        raise LoadTestError(f"{name} sent nothing")
    end = max(record.end or record.scheduled for record in run.records) / NS
    counts, edges = np.histogram(due, bins=max(1, round(float(due.max()) / BIN)), range=(0.0, float(due.max())))
    width = float(edges[1] - edges[0])
    return Timeline(
        name,
        [(float(at) + width / 2, float(count) / width) for at, count in zip(edges, counts, strict=False)],
        [(at, None if count is None else float(count)) for at, count in run.replicas],
        [(record.scheduled / NS, wait) for record in run.records if (wait := _first_token(record)) is not None],
        sum(not record.ok for record in run.records),
        burst or _burst(run),
        end,
    )


def _burst(run: Run) -> tuple[float, float]:
    """When the rate rose and fell: as `arrivals.step` has it, not as its random arrivals happen to."""
    options = run.arrivals.options
    if run.arrivals.name != "step":
        raise LoadTestError(f"arrivals {run.arrivals} have no burst: say where it is with --burst START,END")
    factor, at, share = options.get("factor", 4.0), options.get("at", 0.4), options.get("share", 0.2)
    sessions = len({record.session for record in run.records})
    length = sessions / (run.load.rate * (1 + (factor - 1) * share))
    return at * length, (at + share) * length


def _first_token(record: Record) -> float | None:
    """None: it has an answer, but not of tokens."""
    if not record.ok:
        return math.inf
    return (record.token_chunks[0].at - record.scheduled) / NS if record.token_chunks else None


def _area(steps: list[tuple[float, float | None]], end: float) -> tuple[float, float]:
    """Replica-seconds, and the seconds in which they were counted: each count holds to the next look and no longer."""
    known = [
        (min(until, end) - at, count)
        for (at, count), (until, _) in pairwise(steps)
        if count is not None and at < end
    ]  # fmt: skip
    return sum(seconds * count for seconds, count in known), sum(seconds for seconds, _ in known)


# ---- reports ------------------------------------------------------------------------------------------------------


def table(lines: list[Timeline]) -> list[list[str]]:
    """Rows of text: a head with the names, then a row per figure."""
    figures = [line.figures for line in lines]
    head = ["", *(line.name for line in lines)]
    return [head, *([key, *(_text(each[key]) for each in figures)] for key in figures[0])]


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def html(lines: list[Timeline], title: str) -> str:
    """A page that needs nothing else."""
    rows = table(lines)
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{c}</td>' for c in row[1:])}</tr>" for row in rows[1:])
    figures = "".join(draw(chart) for chart in _charts(lines))
    content = (
        f'<h1>{escape(title)}</h1><div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        f'<div class="figures">{figures}</div>'
    )
    return page(title, content)


def _charts(lines: list[Timeline]) -> list[Chart]:
    colours = _colours(lines)

    def each(points: str, **style: Any) -> tuple[Line, ...]:
        return tuple(Line(line.name, getattr(line, points), colours[line.name], **style) for line in lines)

    markers = tuple(zip(lines[0].burst, ("burst", "end"), strict=True))
    return [
        Chart("Offered load", "time (s)", "requests/s", each("offered", dots=False, steps=True), markers=markers),
        Chart("Replicas", "time (s)", "that answer", each("replicas", dots=False, steps=True), markers=markers),
        Chart("First tokens", "time due (s)", "TTFT (s)", each("first_tokens", line=False), markers=markers),
    ]


def _colours(lines: list[Timeline]) -> dict[str, int]:
    """A colour per name: repeats of the same look the same."""
    return {name: i for i, name in enumerate(dict.fromkeys(line.name for line in lines))}


def _columns(points: Sequence[tuple[float, float | None]]) -> tuple[Floats, Floats]:
    """Times and values; NaN, which nothing is drawn for, where there is none or an infinite one."""
    values = np.array(points, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], np.where(np.isfinite(values[:, 1]), values[:, 1], math.nan)


def png(lines: list[Timeline], title: str, path: Path) -> None:
    """The three charts above each other, on one axis of time.

    Raises:
        LoadTestError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LoadTestError("a PNG needs matplotlib: pip install matplotlib, or --no-png") from None
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    colours = _colours(lines)
    for i, line in enumerate(lines):
        colour = f"C{colours[line.name]}"
        first = line.name not in [before.name for before in lines[:i]]
        label = line.name if first else None
        axes[0].step(*zip(*line.offered, strict=True), where="mid", color=colour, label=label)
        axes[1].step(*_columns(line.replicas), where="post", color=colour)
        axes[2].plot(*_columns(line.first_tokens), ".", color=colour, markersize=3)
    for axis, label in zip(axes, ("offered requests/s", "replicas that answer", "TTFT (s)"), strict=True):
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        for at in lines[0].burst:
            axis.axvline(at, color="0.5", linestyle=":")
    axes[0].set_title(title)
    axes[0].legend(loc="upper right")
    axes[2].set_xlabel("seconds")
    figure.savefig(path, dpi=120)
