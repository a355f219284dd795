"""Where a request's time went at its shard, from the decision records: spans that lie side by side.

    arrive       queue               admit   chunk  token             preempt         admit         token      finish
    |-- engine --|-- place, blocks --|-- prefill ---|-- decode -------|-- preempted --|-- prefill --|-- decode --|

A request that is not the first of the queue waits for what the first one waits for: one record of that one, when its
cause changes, explains the wait of all behind it. So the queue costs a record per change, not one per request and step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from octavo.engine.decisions import Decision

What = Literal["wait", "prefill", "decode"]
Cause = Literal[
    "engine", "grammar", "adapter", "tier", "peer", "place", "blocks", "budget", "preempted", "failed", "apart",
    "below", "",
]  # fmt: skip

_CAUSES: dict[str, Cause] = {
    "its blocks come from another shard": "peer",
    "no running place": "place",
    "no KV blocks": "blocks",
    "running sequences needed blocks": "blocks",
    "no budget left": "budget",
    "others run apart": "apart",
    "others come first": "below",
    "its step failed": "failed",
}
"""By the reasons of decisions; all others wait for the step under way."""

_BEGINS: dict[str, tuple[What, Cause]] = {
    "arrive": ("wait", "engine"),
    "compile": ("wait", "grammar"),
    "compiled": ("wait", "engine"),
    "load": ("wait", "adapter"),
    "fetch": ("wait", "tier"),
    "queue": ("wait", "engine"),
    "admit": ("prefill", ""),
    "chunk": ("prefill", ""),
    "shrink": ("wait", "budget"),
    "token": ("decode", ""),
}
"""What begins with a sequence's own record."""

ANY = -1
"""Index of a record that is of all sequences of its request."""

MAX_COURSES = 4
"""Sequences of a request that are told."""
MAX_SPANS = 256
"""Of one sequence that are told; the last of them is as long as the rest."""


@dataclass(slots=True)
class Span:
    """A part of a sequence's time at a shard.

    Attributes:
        what: "wait", "prefill" (its known tokens are computed) or "decode".
        cause: of a wait: "engine" (the step under way, or the engine had not looked yet), "grammar" (is compiled),
            "adapter" (is loaded), "tier" (its blocks are read from there), "peer" (from another shard), "place"
            (`max_num_seqs` ran), "blocks" (KV),
            "budget" (the step's tokens went to others), "preempted" (others needed its blocks), "failed" (its step
            raised), "apart" (others were tried alone), "below" (it is of those that run where nobody else does).
        start: seconds since the request came to the shard.
        tokens: computed in it.
        first: whether it was the first of the queue; else those before it waited for this.
        others: sequences that began while it waited.
        by: the request that needed its blocks, or else that was first in the queue.
        numbers: what the cause rests on.
    """

    what: What
    cause: Cause
    start: float
    seconds: float
    tokens: int = 0
    first: bool = False
    others: int = 0
    by: str = ""
    numbers: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCourse:
    """A sequence's time at a shard.

    Attributes:
        spans: side by side, in order.
        causes: seconds of all waits by cause.
        queued: whether its beginning is known; records of long ago are gone.
        over: how it ended; "" where it has not.
        cached: tokens that the cache held when it began.
        proposed, right: tokens that were guessed, and how many of them were right.
        steps: from its first token to its end.
    """

    spans: list[Span]
    causes: dict[str, float]
    queued: bool
    over: str = ""
    cached: int = 0
    proposed: int = 0
    right: int = 0
    steps: int = 0

    @property
    def seconds(self) -> float:
        return sum(span.seconds for span in self.spans)


def courses(
    records: Sequence[Decision], arrivals: Iterable[Decision], request_id: str, now: float
) -> dict[int, ShardCourse]:
    """The time of a request's first sequences that queued, by index; of its last visit here. Others began with index 0.

    Args:
        records: the scheduler's, oldest first.
        arrivals: what happened before the queue.
        now: seconds on the engine's clock, where one that has not ended ends.
    """
    own = [place for place, d in enumerate(records) if d.request_id == request_id]
    begins = {records[place].index: place for place in own if records[place].kind in ("queue", "reject")}
    before = _since_arrival(d for d in arrivals if d.request_id == request_id)
    found = {}
    for index, place in sorted((begins or {0: own[0] if own else len(records)}).items())[:MAX_COURSES]:
        late = place < len(records) and records[place].reason == "late"
        walk = _Walk(request_id, index, _blocked(records, place))
        for record in [*([] if late else before), *records[place:]]:
            walk.take(record)
        if walk.spans:
            found[index] = walk.course(now)
    return found


def _since_arrival(arrivals: Iterable[Decision]) -> list[Decision]:
    kept: list[Decision] = []
    for record in arrivals:
        kept = [record] if record.kind == "arrive" else [*kept, record]
    return kept


def _blocked(records: Sequence[Decision], place: int) -> Decision | None:
    """What the first of the queue waits for at a place."""
    ended = set()
    for record in reversed(records[:place]):
        if record.kind in ("wait", "admit"):
            return record if record.kind == "wait" and record.request_id not in ended else None
        if record.kind == "finish":
            ended.add(record.request_id)
    return None


class _Walk:
    """Goes through the records and cuts the sequence's time.

    Args:
        blocked: what the first of the queue waits for where they begin.
    """

    def __init__(self, request_id: str, index: int, blocked: Decision | None) -> None:
        self.spans: list[Span] = []
        self._request_id, self._index = request_id, index
        self._blocked = blocked
        self._queues = False
        self._begin = self._at = 0.0
        self._own: list[Decision] = []
        self._end: Decision | None = None

    def take(self, record: Decision) -> None:
        """The next record, of any sequence."""
        if self._end is not None:
            return
        if record.request_id == self._request_id and record.index in (self._index, ANY):
            self._own.append(record)
            self._take_own(record)
        elif record.kind == "wait":
            self._blocked = record
            if self._queues:
                self._wait(record, record.time)
        elif record.kind == "admit":
            self._blocked = None
            if self._queues:
                self.spans[-1].others += 1
        elif record.kind == "finish" and self._blocked is not None and record.request_id == self._blocked.request_id:
            self._blocked = None

    def _take_own(self, record: Decision) -> None:
        kind = record.kind
        self._queues = kind in ("queue", "wait", "preempt")
        if kind in _BEGINS:
            what, cause = _BEGINS[kind]
            span = self._cut(record.time, what, _CAUSES.get(record.reason, cause) if kind == "fetch" else cause)
            span.tokens = int(record.numbers.get("tokens", 0))
        if kind == "queue" and self._blocked is not None:
            self._wait(self._blocked, record.time)
        elif kind == "wait":
            self._wait(record, record.time)
        elif kind == "preempt":
            cause = _CAUSES.get(record.reason, "preempted")
            self._cut(record.time, "wait", cause).by = record.reason.rpartition(" ")[2] if cause == "preempted" else ""
        elif kind in ("finish", "reject"):
            self._close(record.time)
            self._end = record

    def _wait(self, record: Decision, time: float) -> None:
        """The first of the queue waits for this."""
        cause, first, last = _CAUSES.get(record.reason, "engine"), record.request_id == self._request_id, self.spans[-1]
        if last.cause in (cause, "preempted", "failed") and last.what == "wait":
            last.first |= first
            return
        span = self._cut(time, "wait", cause)
        span.first, span.by, span.numbers = first, "" if first else record.request_id, record.numbers

    def _cut(self, time: float, what: What, cause: Cause) -> Span:
        """End the span that goes on, and begin another, unless it is a wait for the same."""
        if self.spans and what == self.spans[-1].what == "wait" and cause == self.spans[-1].cause:
            return self.spans[-1]
        if not self.spans:
            self._begin = self._at = time
        self._close(time)
        self.spans.append(span := Span(what, cause, time - self._begin, 0.0))
        return span

    def _close(self, time: float) -> None:
        if self.spans:
            self.spans[-1].seconds += time - self._at
        self._at = time

    def course(self, now: float) -> ShardCourse:
        if self._end is None:
            self._close(max(now, self._at))
        spans = [span for span in self.spans if span.seconds > 0 or span.tokens]
        causes: dict[str, float] = {}
        for span in spans:
            if span.what == "wait":
                causes[span.cause] = causes.get(span.cause, 0.0) + span.seconds
        end = self._end.numbers if self._end is not None else {}
        told = next((d.step for d in self._own if d.kind == "token"), None)
        return ShardCourse(
            spans=_bounded(spans),
            causes=causes,
            queued=any(d.kind in ("queue", "reject") for d in self._own),
            over="" if self._end is None else self._end.reason,
            cached=next((int(d.numbers["cached"]) for d in self._own if d.kind == "admit"), 0),
            proposed=int(end.get("proposed", 0)),
            right=int(end.get("right", 0)),
            steps=0 if self._end is None or told is None else self._end.step - told,
        )


def _bounded(spans: Sequence[Span]) -> list[Span]:
    if len(spans) <= MAX_SPANS:
        return list(spans)
    kept, rest = list(spans[:MAX_SPANS]), spans[MAX_SPANS - 1 :]
    last = kept[-1] = Span(rest[-1].what, rest[-1].cause, rest[0].start, sum(span.seconds for span in rest))
    last.tokens = sum(span.tokens for span in rest)
    return kept
