"""Decision records: what the scheduler decided about a sequence, why, and the numbers it saw."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

DecisionKind = Literal["admit", "wait", "shrink", "preempt", "reject", "finish"]


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of the scheduler.

    Attributes:
        step: the step it was taken in.
        time: seconds on the engine's clock.
        request_id, index: the sequence.
        kind: "admit" (starts running), "wait" (stays in the queue), "shrink" (gets fewer tokens than it needs),
            "preempt" (gives its blocks back and queues again), "reject" or "finish".
        reason: a short fixed phrase.
        numbers: what the reason rests on.
    """

    step: int
    time: float
    request_id: str
    index: int
    kind: DecisionKind
    reason: str
    numbers: dict[str, float]


class DecisionLog:
    """The last `capacity` decisions; a wait is noted once per reason, not once per step."""

    def __init__(self, capacity: int = 8192) -> None:
        self._records: deque[Decision] = deque(maxlen=capacity)
        self._waiting: tuple[str, int, str] | None = None

    def add(self, decision: Decision) -> None:
        """Keep a record, unless it repeats the wait noted last."""
        key = (decision.request_id, decision.index, decision.reason) if decision.kind == "wait" else None
        if key is None or key != self._waiting:
            self._records.append(decision)
        if decision.kind in ("wait", "admit"):
            self._waiting = key

    @property
    def newest(self) -> Decision | None:
        """The record kept last."""
        return self._records[-1] if self._records else None

    def of(self, request_id: str) -> list[Decision]:
        """All kept records of one request, oldest first."""
        return [d for d in self._records if d.request_id == request_id]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._records)
