"""Several runs against one server: repeats of a load, sweeps, and the search for a capacity. Each yields a document."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo_loadtest import search, store
from octavo_loadtest.curves import curves
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.figures import BY_KEY, point
from octavo_loadtest.job import Target
from octavo_loadtest.live import LiveView
from octavo_loadtest.load import Load
from octavo_loadtest.measure import Run, measure
from octavo_loadtest.metrics import DEFINITIONS, derive
from octavo_loadtest.plan import reseed
from octavo_loadtest.report import cell
from octavo_loadtest.slo import Slo
from octavo_loadtest.sse import Count
from octavo_loadtest.summary import summarize
from octavo_loadtest.text import Calibration

Document = dict[str, Any]
Point = dict[str, Any]
MOST_CHARACTERS = 60  # of a run's name that are in its folder's: 255 bytes is the most that file systems take
INTERRUPTED = "interrupted"
"""Why a document's campaign stopped, if Ctrl-C did it."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; `points` holds the setting that was being measured, if anything came of it."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points


@dataclass(frozen=True, slots=True)
class Judging:
    """How runs are judged."""

    slos: list[Slo] = field(default_factory=list)
    attainment: float = 0.99
    definitions: str = "octavo"
    price: float = 0.0  # $/h
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.attainment <= 1:
            raise LoadTestError(f"attainment is a share above 0 and up to 1, not {self.attainment:g}")
        if not 0 <= self.price < math.inf:
            raise LoadTestError(f"price must be a number from 0 on, not {self.price:g}")
        if self.repeats < 1:
            raise LoadTestError(f"repeats must be 1 or more, not {self.repeats}")


def summary_of(run: Run, judging: Judging) -> dict[str, Any]:
    """The summary of a run with the lines that plots draw."""
    found = summarize(run, judging.slos, judging.definitions, judging.attainment, judging.price)
    found["curves"] = curves(run.records, derive(run.records, DEFINITIONS[judging.definitions]), run.replicas)
    return found


class Campaign:
    """Runs against one server, each saved in a folder of its own under `folder`."""

    def __init__(
        self,
        target: Target,
        calibration: Calibration,
        judging: Judging,
        folder: Path,
        console: Console,
        count: Count | None = None,
    ) -> None:
        self._target = target
        self._calibration = calibration
        self._judging = judging
        self._folder = folder
        self._console = console
        self._count = count
        self._names: set[str] = set()  # of the folders of its runs

    def point(self, name: str, value: float, load: Load) -> Point:
        """Measure one setting `repeats` times, each with a fresh seed and salt.

        Raises:
            Interrupted: with what was measured until then.
        """
        summaries = []
        whole = True
        for repeat in range(self._judging.repeats):
            title = name if self._judging.repeats == 1 else f"{name} ({repeat + 1} of {self._judging.repeats})"
            run = self._measured(title, reseed(load, repeat))
            whole = run is not None and not run.interrupted
            if run is not None:
                store.save(self._folder / self._file_name(name, repeat), run)
                summaries += [store.plain(summary_of(run, self._judging))] if run.records else []
            if not whole:
                break
        points: list[Point] = [store.plain(point(name, value, summaries))] if summaries else []
        for found in points:
            self._say(found)
        if not whole:
            raise Interrupted(points)
        return points[0]

    def _file_name(self, name: str, repeat: int) -> str:
        """Of a run's folder. Two rates of a search may have the same three digits, and no run replaces another."""
        plain = re.sub(r"[^\w.]+", "-", name).strip("-")[:MOST_CHARACTERS]
        made = f"{plain}-{repeat + 1}".strip("-")
        while made in self._names:
            made += "-again"
        self._names.add(made)
        return made

    def _measured(self, title: str, load: Load) -> Run | None:
        """None: it was interrupted before it began."""
        try:
            with LiveView(self._console, title) as view:
                return measure(load, self._target, self._calibration, view, self._count)
        except KeyboardInterrupt:
            return None

    def _say(self, found: Point) -> None:
        wanted = (
            "requests",
            "output_tokens_overall",
            "ttft_p50",
            "ttft_p90",
            "tpot_p50",
            "e2e_p50",
            "e2e_p99",
            "failed",
        )
        keys = [key for key in wanted if found["figures"][key][0] is not None]
        parts = [f"{BY_KEY[key].title} {cell(BY_KEY[key], found['figures'][key])} {BY_KEY[key].unit}" for key in keys]
        self._console.print(
            f"{found['name']}: {', '.join(part.strip() for part in parts)}", markup=False, soft_wrap=True
        )

    # ---- documents

    def single(self, name: str, load: Load) -> Document:
        """Run one load."""
        try:
            return {"kind": "load", "name": name, "points": [self.point(name, load.rate, load)]}
        except Interrupted as interrupted:
            return cut_short({"kind": "load", "name": name, "points": interrupted.points})

    def rates(self, name: str, load: Load, rates: Iterable[float], bound: Slo | None, gain: float) -> Document:
        """Run open loops with rates from low to high."""
        named = [(f"{rate:g}/s", rate, replace(load, rate=rate)) for rate in rates]
        document = self._sweep(name, "rate", named, bound, gain)
        if document["stopped"] == INTERRUPTED:
            return document
        return document | {"saturation": search.saturation_point(document["points"])}

    def concurrencies(self, name: str, load: Load, levels: Iterable[int], bound: Slo | None, gain: float) -> Document:
        """Run closed loops with increasing numbers of concurrent sessions."""
        closed = load if load.arrivals else replace(load, arrivals="closed")
        named = [(f"{level} at once", float(level), replace(closed, concurrency=level)) for level in levels]
        return self._sweep(name, "concurrency", named, bound, gain)

    def _sweep(
        self, name: str, over: str, loads: list[tuple[str, float, Load]], bound: Slo | None, gain: float
    ) -> Document:
        points: list[Point] = []
        stopped = None
        for i, (title, value, load) in enumerate(loads):
            try:
                points.append(self.point(title, value, reseed(load, 100 * i)))
            except Interrupted as interrupted:
                points += interrupted.points
                return cut_short({"kind": "sweep", "over": over, "name": name, "points": points})
            stopped = search.stop_reason(points, bound, gain)
            if stopped is not None:
                break
        return {"kind": "sweep", "over": over, "name": name, "points": points, "stopped": stopped}

    def capacity(self, name: str, load: Load, precision: float, most: int) -> Document:
        """Find the highest rate that meets the first SLO. An undecided probe is repeated once with twice the
        requests."""
        points: list[Point] = []

        def probe(rate: float) -> search.Probe:
            asked = replace(load, rate=rate)
            for attempt in range(2):
                points.append(self.point(_probe_name(rate, attempt), rate, reseed(asked, 10 * len(points))))
                slo = points[-1]["runs"][-1]["slos"][0]
                if slo["verdict"] != "unresolved":
                    break
                asked = replace(asked, requests=2 * asked.limit if asked.requests else 0, duration=2 * asked.duration)
            return search.Probe(rate, slo["verdict"], slo["met"])

        document = {"kind": "capacity", "over": "rate", "name": name, "points": points}
        try:
            found = search.capacity(probe, load.rate, precision, most)
        except Interrupted as interrupted:
            points += interrupted.points
            return cut_short(document)
        capacity = {
            "slo": self._judging.slos[0].name,
            "low": found.low,
            "high": found.high,
            "unresolved": list(found.unresolved),
        }
        return document | {"capacity": capacity}


def cut_short(document: Document) -> Document:
    """The document of an interrupted campaign.

    Raises:
        LoadTestError: it has no points.
    """
    if not document["points"]:
        raise LoadTestError("interrupted before any answer came: there is nothing to report")
    return document | {"stopped": INTERRUPTED}


def _probe_name(rate: float, attempt: int) -> str:
    return f"{rate:.3g}/s" + (" again" if attempt else "")


def compare(named: list[tuple[str, Document]]) -> Document:
    """Join several documents for comparison: one line each in the plots, all points in one table."""
    points = [
        {**point, "name": name if len(document["points"]) == 1 else f"{name} {point['name']}"}
        for name, document in named
        for point in document["points"]
    ]
    series = [{**document, "name": name} for name, document in named]
    return {"kind": "compare", "name": " against ".join(name for name, _ in named), "points": points, "series": series}
