"""The router's copy of all shards' prefix caches, each kept exact from its numbered events.

    no snapshot yet ── snapshot ──> exact ── a number is missing ──> not exact ── snapshot ──> exact ...

One table has the blocks of all shards: of each block, the shards that hold it, as the bits of an integer. So the
longest prefixes on all of them are found in one walk along a prompt's chain. A block is known by 60 bits of its hash:
where two agree in them, the one is expected where only the other is. With 10 million blocks that happens to one prompt
in 10**11, and what it is told is all that is wrong: shards compare whole hashes. It takes about 80 bytes per block,
whoever holds it (`docs/routing.md`).

A shard's bit is of one state of its cache. A new snapshot is built under another bit, which replaces the old one at
once; so does clearing, and a shard that leaves only gives its bit up. What is left of a bit that is out of use is swept
away part by part while other events come, and only then it is given to somebody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from octavo.block_hash import HASH_BYTES
from octavo.layer_groups import LayerGroups

if TYPE_CHECKING:
    import numpy.typing as npt

Kind = Literal["stored", "removed", "cleared"]
Change = tuple[Kind, Sequence[bytes]]

_PARTS = 512
"""Of the table: no dictionary is so large that to enlarge or to sweep it takes more than a few milliseconds."""

_MOST_SETS = 4096
"""Sets of shards that are kept to be shared by the blocks that lie there."""

_FIRST_KEYS = 32
"""Blocks of a chain that are looked up before more of it is read: most prompts are found nowhere, or not for long."""

_LOST_BITS = np.uint64(4)
"""Of a hash's last 64: integers of 60 bits take 32 bytes, larger ones 48."""

_GROUP_SHIFT = 52
"""Of the last byte of a hash, in which groups of layers differ (`octavo.block_hash.hash_in_group`), in its key."""


def keys_of(hashes: Iterable[bytes]) -> list[int]:
    """What blocks are known by: the last 60 bits of their hashes, which may be joined to longer strings."""
    halves = np.frombuffer(b"".join(hashes), "<u8")
    found: list[int] = (halves[HASH_BYTES // 8 - 1 :: HASH_BYTES // 8] >> _LOST_BITS).tolist()
    return found


class Chain:
    """The hashes of a prompt's blocks, and their keys as far as they have been asked for."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self.hashes = hashes
        self._keys: list[int] = []

    def keys(self, start: int, end: int) -> list[int]:
        """Of some of the blocks."""
        if len(self._keys) < min(end, len(self.hashes)):
            self._keys += keys_of(self.hashes[len(self._keys) : end])
        return self._keys[start:end]


class BlockIndex:
    """Which blocks are where.

    Attributes:
        width: bits that have been given out are below it.
    """

    def __init__(self) -> None:
        self.width = 0
        self._parts: list[dict[int, int]] = [{} for _ in range(_PARTS)]
        self._gets = [part.get for part in self._parts]
        self._coming: dict[bytes, int] = {}  # by whole hashes: there are few, and no time is lost to convert them
        self._sets: dict[int, int] = {}
        self._owners = np.full(64, -1)  # by place of a bit
        self._free: list[int] = []
        self._given_up = 0  # bits, since the sweep began
        self._swept = 0  # bits that are swept away
        self._place = 0  # of the sweep, among the parts

    def take_bit(self) -> int:
        """A bit that is nobody's, as an integer with this bit set."""
        if not self._free:
            self._free.append(1 << self.width)
            self.width += 1
            if self.width > len(self._owners):  # whose length is a multiple of 8
                self._owners = np.concatenate([self._owners, np.full(len(self._owners), -1)])
        return self._free.pop()

    def own(self, bit: int, owner: int) -> None:
        """Say whose a bit is: a number, from 0 on."""
        self._owners[bit.bit_length() - 1] = owner

    def owner(self, bit: int) -> int:
        """Whose a bit is; -1: nobody's."""
        return int(self._owners[bit.bit_length() - 1])

    def owners(self, bits: int) -> npt.NDArray[np.int64]:
        """Whose bits these are; -1 for each that is nobody's."""
        if not bits & (bits - 1):
            return self._owners[bits.bit_length() - 1 : bits.bit_length()]
        set_bits = _set_bits(bits)
        return self._owners[: len(set_bits)][set_bits]

    def give_up(self, bit: int) -> None:
        """A bit is not used any more; the blocks that have it are found by it until they are swept."""
        self._given_up |= bit
        self.own(bit, -1)

    def sweep(self) -> None:
        """Do a part of the sweep, if there is one to do."""
        if not self._swept:
            if not self._given_up:
                return
            self._swept, self._given_up = self._given_up, 0
        swept = self._swept
        part = self._parts[self._place]
        for key in [key for key, bits in part.items() if bits & swept]:
            if rest := part[key] & ~swept:
                part[key] = self._shared(rest)
            else:
                del part[key]
        self._place = (self._place + 1) % _PARTS
        if not self._place:
            self._free += [1 << place for place in np.flatnonzero(_set_bits(swept)).tolist()]
            self._swept = 0

    def _shared(self, bits: int) -> int:
        """The same integer as other blocks have: integers of a thousand bits are large."""
        if len(self._sets) > _MOST_SETS:
            self._sets.clear()
        return self._sets.setdefault(bits, bits)

    def add(self, bit: int, keys: Iterable[int]) -> int:
        """Blocks have come to be there; returns how many of them were not."""
        parts, shared, new = self._parts, self._shared, 0
        for key in keys:
            part = parts[key % _PARTS]
            bits = part.get(key)
            if bits is None:
                part[key] = bit
                new += 1
            elif not bits & bit:
                part[key] = shared(bits | bit)
                new += 1
        return new

    def remove(self, bit: int, keys: Iterable[int]) -> int:
        """Blocks have gone; returns how many of them were there."""
        parts, gone = self._parts, 0
        for key in keys:
            part = parts[key % _PARTS]
            bits = part.get(key, 0)
            if bits & bit:
                gone += 1
                if bits == bit:
                    del part[key]
                else:
                    part[key] = self._shared(bits & ~bit)
        return gone

    def expect(self, bit: int, blocks: Iterable[bytes]) -> list[bytes]:
        """Blocks are about to be computed there; returns those that were already."""
        coming = self._coming
        if coming.keys().isdisjoint(blocks):
            coming.update(dict.fromkeys(blocks, bit))  # in C: a third of the loop's time
            return []
        again = []
        for block in blocks:
            bits = coming.get(block, 0)
            if bits & bit:
                again.append(block)
            coming[block] = bits | bit
        return again

    def expect_no_more(self, bit: int, blocks: Iterable[bytes]) -> None:
        """They have been, or will not be."""
        coming = self._coming
        for block in blocks:
            bits = coming.pop(block, 0)
            if bits is not bit and (rest := bits & ~bit):
                coming[block] = rest

    def expects(self, bit: int, block: bytes) -> bool:
        """Whether a block is about to be computed there."""
        return bool(self._coming.get(block, 0) & bit)

    def holds(self, bit: int, key: int) -> bool:
        """Whether a block is there."""
        return bool(self._parts[key % _PARTS].get(key, 0) & bit)

    def keys(self, bit: int) -> set[int]:
        """All blocks that are there; it takes a second for ten million blocks in the table."""
        return {key for part in self._parts for key, bits in part.items() if bits & bit}

    def prefixes(self, chain: Chain, *, coming: bool = True) -> list[tuple[int, int]]:
        """How many of a chain's first blocks are where: numbers, falling, and the bits of those who have just so many.

        Args:
            coming: count what is expected, too.
        """
        found: list[tuple[int, int]] = []
        gets, parts, expected = self._gets, _PARTS, self._coming if coming else {}
        here, length, start, more = -1, 0, 0, _FIRST_KEYS
        while here and start < len(chain.hashes):
            blocks = chain.hashes[start : start + more]
            for block, key in zip(blocks, chain.keys(start, start + more), strict=True):
                bits = gets[key % parts](key, 0)
                if block in expected:
                    bits |= expected[block]
                if bits is not here:  # those of one prompt are mostly the same object
                    rest = here & bits
                    if rest != here and length:
                        found.append((length, here & ~bits))
                    here = bits if rest == bits else rest
                    if not here:
                        break
                length += 1
            start, more = start + more, 4 * more
        if here and length:
            found.append((length, here))
        found.reverse()
        return found


def _set_bits(bits: int) -> npt.NDArray[np.bool_]:
    """Of each place below a multiple of 8, whether the bit there is set."""
    as_bytes = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), np.uint8)
    return np.unpackbits(as_bytes, bitorder="little").view(np.bool_)


class ShardBlocks:
    """One shard's published blocks, and those that are about to be.

    Args:
        capacity: most blocks kept. Further blocks of a larger cache are left out, so that too few cached tokens are
            predicted rather than too many.
        index: of all shards; None: one of its own.

    Attributes:
        bit: which is this shard's in the index now.
        exact: whether no event is missing since the last snapshot.
        gaps, snapshots, skipped: counts of gaps found in the event numbers, of snapshots applied, of blocks left out.
    """

    def __init__(self, capacity: int, index: BlockIndex | None = None) -> None:
        self.capacity = capacity
        self.index = index or BlockIndex()
        self.bit = self.index.take_bit()
        self._coming: dict[int, Sequence[bytes]] = {}  # what a request will add, by its list's id
        self._again: Counter[bytes] = Counter()  # requests beside the first that will add a block
        self.exact = False
        self.gaps = self.snapshots = self.skipped = 0
        self._count = 0
        self._next = 0
        self._building = 0  # bit of a snapshot that is coming in
        self._built = 0  # blocks in it
        self._parts = -1  # applied so far; -1: only the first part of a new snapshot is expected

    def __len__(self) -> int:
        return self._count

    def __contains__(self, block: object) -> bool:
        return isinstance(block, bytes) and self.index.holds(self.bit, *keys_of([block]))

    def matched(self, chain: Sequence[bytes]) -> int:
        """How many of a chain's first blocks are published."""
        return next((i for i, key in enumerate(keys_of(chain)) if not self.index.holds(self.bit, key)), len(chain))

    @property
    def keys(self) -> set[int]:
        """Of all that is published: what tells whether the copy is exact."""
        return self.index.keys(self.bit)

    @property
    def coming(self) -> set[bytes]:
        """The blocks that are expected."""
        return {block for blocks in self._coming.values() for block in blocks}

    def leave(self) -> None:
        """The shard has gone."""
        self.index.expect_no_more(self.bit, self.coming)
        self._coming.clear()
        self.index.give_up(self.bit)
        if self._building:
            self.index.give_up(self._building)

    def changes(self, first: int, changes: Sequence[Change]) -> None:
        """Apply events `first`, `first + 1`, ...; those already applied are skipped, and after a gap it is not exact.

        Hashes may be joined, so that one string of an event has many.
        """
        if not self.exact:
            return
        if first > self._next:
            self.exact = False
            self.gaps += 1
            return
        for kind, hashes in changes[self._next - first :]:
            self._apply(kind, hashes)
        self._next = max(self._next, first + len(changes))
        self.index.sweep()

    def part(self, sequence: int, index: int, count: int, hashes: Iterable[bytes]) -> None:
        """Apply part `index` of a snapshot's `count` parts; the last one makes the copy exact again.

        The snapshot may already include effects of events from `sequence` on. Applying these events again, in order,
        leads to the same.
        """
        if index == 0:
            if self._building:
                self.index.give_up(self._building)
            self._building, self._built, self._parts = self.index.take_bit(), 0, 0
        if index != self._parts:  # a part is missing: wait for another snapshot
            return
        bit = self._building
        fresh = [key for key in dict.fromkeys(keys_of(hashes)) if not self.index.holds(bit, key)]
        room = max(0, self.capacity - self._built)
        self._built += self.index.add(bit, fresh[:room])
        self.skipped += max(0, len(fresh) - room)
        self._parts += 1
        if self._parts == count:
            self._replace(self._building, self._built)
            self._building = 0
            self._next, self._parts, self.exact = sequence, -1, True
            self.snapshots += 1
        self.index.sweep()

    def expect(self, blocks: Sequence[bytes]) -> None:
        """A request is expected to add these blocks."""
        self._coming[id(blocks)] = blocks
        if again := self.index.expect(self.bit, blocks):
            self._again.update(again)

    def expect_no_more(self, blocks: Sequence[bytes]) -> None:
        """The same list again: it has, or will not. A second call does nothing."""
        if self._coming.pop(id(blocks), None) is None:
            return
        if self._again:
            ended = [block for block in blocks if block not in self._again]
            self._again -= Counter(block for block in blocks if block in self._again)
            blocks = ended
        self.index.expect_no_more(self.bit, blocks)

    def _apply(self, kind: Kind, hashes: Sequence[bytes]) -> None:
        if kind == "stored":
            keys = keys_of(hashes)
            room = max(0, self.capacity - self._count)
            self._count += self.index.add(self.bit, keys[:room])
            self.skipped += max(0, len(keys) - room)
        elif kind == "removed":
            self._count -= self.index.remove(self.bit, keys_of(hashes))
        elif self._count:
            self._replace(self.index.take_bit(), 0)

    def _replace(self, bit: int, count: int) -> None:
        """From now on what is there is under another bit."""
        coming = self.coming
        self.index.expect_no_more(self.bit, coming)
        self.index.own(bit, self.index.owner(self.bit))
        self.index.give_up(self.bit)
        self.bit, self._count = bit, count
        self.index.expect(self.bit, coming)


def usable(chain: Chain, count: int, most: int, blocks: ShardBlocks, groups: LayerGroups, block_size: int) -> int:
    """Leading blocks of a chain that a shard can go on from, where layers have windows.

    Args:
        count: blocks of the chain that are looked at.
        most: that it holds or is about to compute.
        groups, block_size: as in `octavo.load.ShardState`.
    """
    keys, index = chain.keys(0, count), blocks.index

    def has(place: int, group: int) -> bool:
        key = keys[place]
        return index.expects(blocks.bit, chain.hashes[place]) or index.holds(blocks.bit, key ^ group << _GROUP_SHIFT)

    return groups.usable(most if groups.whole else len(keys), block_size, has)
