"""The router's copy of one shard's prefix cache, kept exact from its numbered events.

    no snapshot yet ── snapshot ──> exact ── a number is missing ──> not exact ── snapshot ──> exact ...

It is one set of hashes per shard: a new snapshot is built beside the old set and replaces it at once, and removing a
shard is one deletion. It takes about 130 bytes per block and shard (`docs/routing.md`). One thread writes. A reader in
another thread may miss the last few changes, which is harmless: the copy of a remote cache is always slightly old.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from itertools import takewhile
from typing import Literal

from octavo.block_hash import hash_in_group
from octavo.layer_groups import LayerGroups

Kind = Literal["stored", "removed", "cleared"]
Change = tuple[Kind, Sequence[bytes]]


class ShardBlocks:
    """One shard's published blocks.

    Args:
        capacity: most hashes kept. Further blocks of a larger cache are left out, so that too few cached tokens are
            predicted rather than too many.

    Attributes:
        hashes: the published block hashes.
        exact: whether no event is missing since the last snapshot.
        gaps, snapshots, skipped: counts of gaps found in the event numbers, of snapshots applied, of hashes left out.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hashes: set[bytes] = set()
        self.exact = False
        self.gaps = self.snapshots = self.skipped = 0
        self._next = 0
        self._building: set[bytes] = set()
        self._parts = -1  # applied so far; -1: only the first part of a new snapshot is expected

    def changes(self, first: int, changes: Sequence[Change]) -> None:
        """Apply events `first`, `first + 1`, ...; those already applied are skipped, and after a gap the set is not
        exact."""
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
        """Apply part `index` of a snapshot's `count` parts; the last one makes the set exact again.

        The snapshot may already include effects of events from `sequence` on. Applying these events again, in order,
        leads to the same set.
        """
        if index == 0:
            self._building, self._parts = set(), 0
        if index != self._parts:  # a part is missing: wait for another snapshot
            return
        fresh = [block for block in hashes if block not in self._building]
        room = max(0, self.capacity - len(self._building))
        self._building.update(fresh[:room])
        self.skipped += max(0, len(fresh) - room)
        self._parts += 1
        if self._parts == count:
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


def matched(
    chain: Sequence[bytes],
    held: Container[bytes],
    coming: Container[bytes] = (),
    groups: LayerGroups | None = None,
    block_size: int = 1,
) -> int:
    """Leading blocks of `chain` that a shard holds or is about to compute, and can go on from.

    Args:
        groups, block_size: as in `octavo.load.ShardState`.
    """
    if groups is not None:
        return _usable(chain, held, coming, groups, block_size)
    position = len(list(takewhile(held.__contains__, chain)))  # in C: a third of the loop's time
    while position < len(chain) and (chain[position] in coming or chain[position] in held):
        position += 1
    return position


def _usable(
    chain: Sequence[bytes], held: Container[bytes], coming: Container[bytes], groups: LayerGroups, block_size: int
) -> int:
    """As `matched`, where layers have windows."""

    def has(place: int, group: int) -> bool:
        return chain[place] in coming or hash_in_group(chain[place], group) in held

    most = matched(chain, held, coming) if groups.whole else len(chain)
    return groups.usable(most, block_size, has)
