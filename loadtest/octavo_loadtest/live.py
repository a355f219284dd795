"""The display while a load runs."""

from __future__ import annotations

import math
import time
from types import TracebackType

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from octavo_loadtest.measure import Run
from octavo_loadtest.metrics import NS, chunk_gaps
from octavo_loadtest.plan import Plan
from octavo_loadtest.record import Record
from octavo_loadtest.stats import quantile

RECENT = 10.0  # s


class LiveView:
    """A table that follows a run on a terminal; elsewhere a line every ten seconds. Call it with the run so far."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = 0.0

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, run: Run, now: float) -> None:
        if time.monotonic() < self._next:
            return
        if self._next == 0.0 and run.plan is not None:
            self._console.print(f"{self._title}: {announced(run.plan)}", markup=False, soft_wrap=True)
        self._next = time.monotonic() + (0.5 if self._live is not None else 10.0)
        if self._live is not None:
            self._live.update(self._render(run, now), refresh=True)
        elif now > 5:
            self._console.print(f"{self._title}: {_line(run, now)}", markup=False, soft_wrap=True)

    def _render(self, run: Run, now: float) -> Group:
        recent = [record for record in run.records if (record.end or 0) / NS > now - RECENT]
        table = Table.grid(padding=(0, 3))
        for name, value in _rows(run, recent, now).items():
            table.add_row(Text(name, style="dim"), value)
        bar = ProgressBar(total=run.planned, completed=len(run.records), width=40)
        return Group(Text(self._title, style="bold"), bar, table)


def announced(plan: Plan) -> str:
    """What is going to be sent: requests, the sessions that they belong to, the time that this takes."""
    load, sessions = plan.load, len(plan.sessions)
    of = f" in {sessions} sessions" if sessions != plan.requests else ""
    if not plan.arrivals.closed:
        return f"{plan.requests} requests{of}; the last session begins after {spoken(plan.sessions[-1].at)}"
    until = f", for {spoken(load.duration)}" if load.duration else ""
    asked = f"up to {plan.requests}" if load.duration else str(plan.requests)
    return f"{asked} requests{of}, {load.concurrency or 'a batch of'} sessions at once{until}"


def left(run: Run, now: float) -> float | None:
    """Seconds to the last answer, as far as they can be told; None: nothing is known yet.

    The pace so far says it. Arrivals that are still to come, and the end of the drain, bound it.
    """
    finished, load = len(run.records), run.load
    pace = now / finished * max(0, run.planned - finished) if finished else math.inf
    if run.arrivals.closed:
        end = load.duration - now if load.duration else math.inf
        found = min(pace, end)
    else:
        coming = run.plan.sessions[-1].at - now if run.plan is not None else 0.0
        found = max(coming, min(pace, coming + load.drain))
    return max(0.0, found) if math.isfinite(found) else None


def spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _rows(run: Run, recent: list[Record], now: float) -> dict[str, str]:
    sent = sum(run.senders.sent.values())
    window = max(min(now, RECENT), 0.1)
    tokens = sum(record.output_tokens for record in recent)
    failed = sum(not record.ok for record in run.records)
    return {
        "time": f"{now:.0f} s" + ("" if (rest := left(run, now)) is None else f", about {spoken(rest)} left"),
        "requests": f"{sent} sent, {len(run.records)} finished of {run.planned}",
        "in flight": str(max(0, sent - len(run.records))),
        "rate": f"{'closed loop' if run.arrivals.closed else f'{run.load.rate:g} sessions/s offered'}, "
        f"{sent / max(now, 1):.2f}/s sent, {len(recent) / window:.2f}/s finished, {tokens / window:.0f} tokens/s",
        "TTFT": _percentiles(_ttft(recent)),
        "between chunks": _percentiles([gap for record in recent for gap, _ in chunk_gaps(record)]),
        "failed": f"[red]{failed}[/]" if failed else "0",
        "client": f"{quantile(np.array(run.senders.lags[-500:]), 0.99) * 1e3:.1f} ms late at p99",
    }


def _line(run: Run, now: float) -> str:
    rows = _rows(run, [record for record in run.records if (record.end or 0) / NS > now - RECENT], now)
    return f"{rows['time']}, {rows['requests']}, {rows['in flight']} in flight, TTFT {rows['TTFT']}"


def _ttft(records: list[Record]) -> list[float]:
    return [(record.token_chunks[0].at - record.scheduled) / NS for record in records if record.token_chunks]


def _percentiles(values: list[float]) -> str:
    if not values:
        return "-"
    array = np.array(values)
    return f"p50 {quantile(array, 0.5) * 1e3:.1f} ms, p90 {quantile(array, 0.9) * 1e3:.1f} ms"
