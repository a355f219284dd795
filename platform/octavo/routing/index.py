"""What one shard's prefix cache holds, kept exact from its numbered events.

    no snapshot yet ── snapshot ──> exact ── a number is missing ──> not exact ── snapshot ──> exact ...

A set of hashes per shard: a new snapshot is built beside the old set and takes its place at once, a shard that leaves
is one deletion, and the truth can be compared as it is. About 130 bytes per block and shard (`docs/routing.md`).
There is one writer; a reader in another thread sees a set that is at most a few changes old, which is all that a set
of things far away can be.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from itertools import takewhile
from typing import Literal

Kind = Literal["stored", "removed", "cleared"]
Change = tuple[Kind, Sequence[bytes]]


class ShardBlocks:
    """One shard's published blocks.

    Args:
        capacity: most hashes kept. What a larger cache stores beyond them is left out, so that predictions err on the
            side of too little.

    Attributes:
        hashes: the published block hashes.
        exact: whether no event is missing since the last snapshot.
        gaps, snapshots, skipped: counts of missing numbers met, of snapshots taken in, of hashes left out.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hashes: set[bytes] = set()
        self.exact = False
        self.gaps = self.snapshots = self.skipped = 0
        self._next = 0
        self._building: set[bytes] = set()
        self._parts = -1  # taken in so far; -1: none is expected but the first

    def changes(self, first: int, changes: Sequence[Change]) -> None:
        """Take in events `first`, `first + 1`, ...; known ones are passed over, a missing one ends exactness."""
        if not self.exact:
            return
        if first > self._next:
            self.exact = False
            self.gaps += 1
            return
        for kind, hashes in changes[self._next - first :]:
            self._apply(kind, hashes)
        self._next = max(self._next, first + len(changes))

    def part(self, sequence: int, index: int, count: int, hashes: Iterable[bytes]) -> None:
        """Take in part `index` of the `count` of a snapshot; the last one makes the set exact again.

        The snapshot may hold effects of events from `sequence` on already: each of them, applied again in order, leads
        to the same set.
        """
        if index == 0:
            self._building, self._parts = set(), 0
        if index != self._parts:  # a part is missing: wait for another snapshot
            return
        self._building.update(hashes)
        self._parts += 1
        if self._parts == count:
            self.skipped += max(0, len(self._building) - self.capacity)
            while len(self._building) > self.capacity:
                self._building.pop()
            self.hashes, self._building = self._building, set()
            self._next, self._parts, self.exact = sequence, -1, True
            self.snapshots += 1

    def _apply(self, kind: Kind, hashes: Sequence[bytes]) -> None:
        if kind == "stored":
            room = max(0, self.capacity - len(self.hashes))
            self.hashes.update(hashes[:room])
            self.skipped += max(0, len(hashes) - room)
        elif kind == "removed":
            self.hashes.difference_update(hashes)
        else:
            self.hashes = set()


def matched(chain: Sequence[bytes], held: Container[bytes], coming: Container[bytes] = ()) -> int:
    """Leading blocks of `chain` that a shard holds or is about to compute."""
    position = len(list(takewhile(held.__contains__, chain)))  # in C: a third of the loop's time
    while position < len(chain) and (chain[position] in coming or chain[position] in held):
        position += 1
    return position
