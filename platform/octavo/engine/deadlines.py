"""Requests whose first token is due at a time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from octavo.engine.sequence import Group


class Deadlines:
    """A heap of requests, the one that is due first on top; those that have ended stay in it for a while."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Group]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, group: Group, living: int) -> None:
        """A request's first token is due in so many seconds of the engine's clock.

        Args:
            living: requests that have not ended: no more than twice as many, and a few, are remembered.
        """
        if len(self._heap) > 2 * living + 64:
            self._heap = [each for each in self._heap if each[2].sequences]
            heapify(self._heap)
        heappush(self._heap, (due, group.place.number, group))

    def passed(self, now: float) -> list[Group]:
        """Those whose time has come; they are forgotten."""
        groups = []
        while self._heap and self._heap[0][0] <= now:
            groups.append(heappop(self._heap)[2])
        return groups
