"""Requests whose first token is due at a time."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from octavo.engine.sequence import Group
from octavo.request import SequenceUpdate


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

    def passed(self, now: float, living: Mapping[str, Group]) -> list[Group]:
        """Those whose time has come and who have not begun; they are forgotten.

        Args:
            living: by their names, requests that have not ended.
        """
        groups = []
        while self._heap and self._heap[0][0] <= now:
            group = heappop(self._heap)[2]
            if living.get(group.request.request_id) is group and group.num_cached_tokens is None:
                groups.append(group)
        return groups


def told(group: Group, updates: list[SequenceUpdate]) -> list[SequenceUpdate]:
    """The last updates of a request that has not begun by its deadline, with the sentence that says so."""
    for update in updates:
        update.stop_reason = f"it had not begun {group.request.deadline:g} s after it came, its deadline"
    return updates
