"""A request's trace while the request runs: plain values, of which spans are made once it has ended (`gateway.spans`).

    request   |------------------------------------------------------------------------------|
    phases    | prepare | route | queue | prefill | decode | failover | queue | ... | respond |

A phase begins where the one before it ends, so together they are as long as the request. All times are this process's:
of its own a shard only says how many seconds it has computed a prompt (`SequenceUpdate.prefill`). Nothing here knows a
text; no attribute holds one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from octavo.routing.router import Decision

Value = str | int | float | bool | list[str]

MAX_COURSES = 8
"""Prompts of one request whose phases are kept; a request may have a thousand."""
MAX_PHASES = 64
"""Of one prompt that are kept: after so many failovers its last phase is as long as the rest."""


@dataclass(slots=True, eq=False)
class Phase:
    """A part of a request.

    Attributes:
        start, end: seconds on the monotonic clock.
        error: why the request did not come any further in it.
    """

    name: str
    start: float
    end: float = 0.0
    error: str | None = None
    attributes: dict[str, Value] = field(default_factory=dict)


class Course:
    """One prompt's phases, the last of which goes on.

    Attributes:
        decisions: of its router, each with its seconds since 1970.
    """

    def __init__(self, name: str, start: float) -> None:
        self.phases = [Phase(name, start)]
        self.decisions: list[tuple[float, Decision]] = []

    def say(self, **attributes: Value) -> None:
        """Add attributes of ours to the phase that goes on; `cached_tokens` becomes `octavo.cached_tokens`."""
        kept = self.phases[-1].attributes
        for name, value in attributes.items():
            kept[f"octavo.{name}"] = value

    def enter(self, name: str, at: float | None = None) -> None:
        """Begin the next phase now, or at an earlier time, at which the one before then ended."""
        if len(self.phases) < MAX_PHASES:
            last = self.phases[-1]
            last.end = time.monotonic() if at is None else max(at, last.start)
            self.phases.append(Phase(name, last.end))

    def fail(self, error: str) -> None:
        """The request did not come any further in the phase that goes on."""
        self.phases[-1].error = error

    def began(self, prefill: float | None) -> None:
        """The first token has come, `prefill` seconds after its prompt began to be computed."""
        now = time.monotonic()
        if prefill is not None:
            shard = self.phases[-1].attributes.get("octavo.shard")
            for name, at in (("prefill", now - prefill), ("decode", now)):
                self.enter(name, at)
                if shard is not None:
                    self.say(shard=shard)


@dataclass(slots=True, eq=False)
class Trace:
    """One request.

    Attributes:
        name: of its span.
        ids: of trace and span, hexadecimal, for logs.
        context: the tracer's own.
        start: seconds on the monotonic clock; `since` is the same moment in nanoseconds since 1970.
        courses: of its prompts; the first begins with the request.
        status: of the answer; 0 where there was none.
        error: what went wrong, by its code; a server's fault if `failed`.
    """

    name: str
    ids: tuple[str, str]
    context: Any
    start: float = field(default_factory=time.monotonic)
    since: int = field(default_factory=time.time_ns)
    attributes: dict[str, Value] = field(default_factory=dict)
    courses: list[Course] = field(default_factory=list)
    status: int = 0
    error: str | None = None
    failed: bool = False
    end: float | None = None
    _begun: int = 0

    def __post_init__(self) -> None:
        self.courses.append(Course("prepare", self.start))

    def course(self) -> Course | None:
        """That of the next prompt, which looks for a shard from now on; None where it is not kept."""
        self._begun += 1
        if self._begun > MAX_COURSES or self.end is not None:
            return None
        if self._begun == 1:
            self.courses[0].enter("route")
        else:
            self.courses.append(Course("route", time.monotonic()))
        return self.courses[-1]

    def fail(self, code: str | None, status: int) -> None:
        """The request failed, with this HTTP status or, in the middle of an answer, in place of it."""
        self.error, self.failed = code or str(status), status >= 500

    def finish(self) -> None:
        """The request has ended, and whatever went on."""
        self.end = time.monotonic()
        for course in self.courses:
            course.phases[-1].end = self.end

    def wall(self, at: float) -> int:
        """Nanoseconds since 1970 of a time on the monotonic clock."""
        return self.since + round(1e9 * (at - self.start))


class Tracer(Protocol):
    """Decides which requests are traced, and takes their traces."""

    def begin(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace | None:
        """A trace of a request that came with these headers (lower case); None if it is not traced."""
        ...

    def take(self, trace: Trace) -> None:
        """A trace that is finished."""
        ...

    def close(self) -> None:
        """Send what waits; may take seconds, in any thread."""
        ...


CURRENT: ContextVar[Trace | None] = ContextVar("octavo_trace", default=None)
"""That of the request which runs."""


class TraceIds(logging.Filter):
    """Adds the ids of a traced request to the lines that are logged for it; filters nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (trace := CURRENT.get()) is not None:
            record.trace_id, record.span_id = trace.ids
        return True


def course() -> Course | None:
    """Of the next prompt of the request which runs; None where it is not traced."""
    trace = CURRENT.get()
    return None if trace is None else trace.course()
