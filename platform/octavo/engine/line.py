"""Sequences in the order in which they run, and what those that wait amount to."""

from __future__ import annotations

import bisect
from operator import attrgetter

from octavo.engine.sequence import Sequence

_ORDER = attrgetter("order")


class Line(list[Sequence]):
    """Sequences by their `order`; a place is found by halving, for thousands may wait and all be aborted at once."""

    def join(self, seq: Sequence) -> None:
        """Put a sequence where it belongs."""
        bisect.insort(self, seq, key=_ORDER)

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        place = bisect.bisect_left(self, seq.order, key=_ORDER)
        found = place < len(self) and self[place] is seq
        if found:
            del self[place]
        return found


class Queue(Line):
    """The line of those that wait, with sums that cost nothing to read.

    Attributes:
        tokens: to compute, if the cache holds nothing.
        uncached: to compute, if it holds what is expected.
        attended: sum over those of the positions that each attends to (the cost model's unit).
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.uncached = self.attended = 0
        self._amounts: dict[Sequence, tuple[int, int, int]] = {}

    def join(self, seq: Sequence) -> None:
        """Put a sequence, of which nothing is computed, where it belongs."""
        super().join(seq)
        uncached = max(1, seq.num_known - seq.expected_cached)
        attended = uncached * (seq.expected_cached + (uncached + 1) // 2)
        self._amounts[seq] = seq.num_known, uncached, attended
        self._count(*self._amounts[seq])

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        found = super().leave(seq)
        if found:
            self._count(*(-amount for amount in self._amounts.pop(seq)))
        return found

    def first(self, priority: int) -> Sequence | None:
        """The first of a priority that is not the late sequence of a request."""
        start = bisect.bisect_left(self, (priority,), key=_ORDER)
        found = next((self[place] for place in range(start, len(self)) if not self[place].is_late), None)
        return found if found is not None and found.order[0] == priority else None

    def _count(self, tokens: int, uncached: int, attended: int) -> None:
        self.tokens += tokens
        self.uncached += uncached
        self.attended += attended
