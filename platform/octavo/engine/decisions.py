"""Decision records: what the scheduler decided about a sequence, why, and the numbers it saw."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from octavo.engine.queues import OrderedSequences
    from octavo.engine.sequence import Sequence

DecisionKind = Literal[
    "queue", "wait", "fetch", "admit", "chunk", "shrink", "preempt", "token", "reject", "finish",
    "arrive", "compile", "compiled", "load",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of the scheduler, or what became of a request before it came there.

    Attributes:
        step: the step it was taken in.
        time: seconds on the engine's clock.
        request_id, index: the sequence.
        kind: "queue" (has come into the queue), "wait" (is the first there, and stays), "fetch" (its blocks are read
            from a slower tier), "admit" (starts running), "chunk" (gets more of its prompt computed), "shrink" (gets
            fewer tokens than it needs), "preempt" (gives its blocks back and queues again), "token" (got one, the first
            since it was admitted), "reject" or "finish". Before the queue: "arrive", "compile" (its grammar),
            "compiled", "load" (its adapter).
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
    """The last `capacity` decisions, about 400 bytes each; what goes on is noted once per reason, not once per step.

    Attributes:
        told: called with each decision that is kept; None while nobody wants to know.
    """

    def __init__(self, capacity: int = 8192) -> None:
        self._records: deque[Decision] = deque(maxlen=capacity)
        self.told: Callable[[Decision], None] | None = None
        self._waiting: tuple[str, int, str] | None = None
        self._short: set[tuple[str, int]] = set()  # who got no tokens since its last record

    def add(self, decision: Decision) -> None:
        """Keep a record, unless it repeats the wait noted last, or says again that a sequence gets nothing."""
        who = decision.request_id, decision.index
        key = (*who, decision.reason) if decision.kind == "wait" else None
        if (key is not None and key == self._waiting) or (decision.kind == "shrink" and who in self._short):
            return
        self._records.append(decision)
        if self.told is not None:
            self.told(decision)
        if decision.kind in ("wait", "admit"):
            self._waiting = key
        (self._short.add if decision.kind == "shrink" else self._short.discard)(who)

    def of(self, request_id: str) -> list[Decision]:
        """All kept records of one request, oldest first."""
        return [d for d in self._records if d.request_id == request_id]

    def copy(self) -> list[Decision]:
        """All of them, oldest first; another thread may call it."""
        return list(self._records)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._records)


class Notes:
    """Writes down what the scheduler decides.

    Attributes:
        step: the present one.
    """

    def __init__(self, log: DecisionLog, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self.step = 0

    def __call__(self, kind: DecisionKind, seq: Sequence, reason: str, **numbers: float) -> None:
        """Something is decided about a sequence."""
        self.add(kind, seq.group.request.request_id, seq.index, reason, **numbers)

    def add(self, kind: DecisionKind, request_id: str, index: int, reason: str, **numbers: float) -> None:
        """The same, by its name."""
        self._log.add(Decision(self.step, self._clock(), request_id, index, kind, reason, numbers))

    def wait(self, waiting: OrderedSequences, running: int, reason: str) -> None:
        """Say what the first of those that wait waits for."""
        if (head := waiting.head(None)) is not None:
            self("wait", head, reason, running=running)

    def token(self, seq: Sequence) -> None:
        """A sequence has got its first token since it was admitted."""
        seq.awaited = False
        self("token", seq, "computed")
