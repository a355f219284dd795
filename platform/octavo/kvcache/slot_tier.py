"""Blocks in slots, of a file or of memory: which slot holds which, and which goes when all are taken."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from octavo.kvcache.eviction import CachedBlocks
from octavo.kvcache.slot_file import Damaged
from octavo.kvcache.tier import Bytes, Failure

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG

CRAMPED = 256
"""Blocks that are written where others were, once the disk had no room for one more, until that is tried again."""


class Slots(Protocol):
    """Where blocks lie: a `SlotFile` or a `SlotMemory`."""

    num_slots: int

    def entries(self) -> Iterator[tuple[int, bytes]]: ...

    def read(self, slot: int, block_hash: bytes, into: Bytes) -> None: ...

    def write(self, slot: int, block_hash: bytes, data: Bytes) -> None: ...

    def clear(self, slot: int) -> None: ...

    def close(self) -> None: ...


class SlotTier:
    """A tier (`octavo.kvcache.tier.Tier`) in slots; its index is made of what these say they hold.

    Slots go as a pool's cached blocks do (`eviction`), but what was learned of them ends with the process.

    Args:
        file: of slots that are this tier's alone.
    """

    def __init__(self, file: Slots) -> None:
        self.failures: Counter[Failure] = Counter()
        self.changes: deque[tuple[bool, bytes]] = deque()
        self._file = file
        self._lock = threading.Lock()  # one reads and another writes
        self._hashes: list[bytes | None] = [None] * file.num_slots
        self._index: dict[bytes, int] = {}
        self._order = CachedBlocks(file.num_slots)
        for slot, block_hash in file.entries():
            if block_hash not in self._index:
                self._take_in(slot, block_hash)
        self.changes.clear()
        self._cramped = 0  # writes until a slot that holds nothing is tried again
        self._free = [slot for slot in range(file.num_slots - 1, -1, -1) if self._hashes[slot] is None]

    def __len__(self) -> int:
        return len(self._index)

    def lookup(self, chain: Sequence[bytes]) -> int:
        """As in `Tier`."""
        index = self._index
        return next((i for i, block_hash in enumerate(chain) if block_hash not in index), len(chain))

    def hashes(self) -> list[bytes]:
        """As in `Tier`."""
        return list(self._index)

    def read(self, hashes: Sequence[bytes], into: Bytes) -> int:
        """As in `Tier`."""
        slots: list[int] = []
        for block_hash, row in zip(hashes, into, strict=True):
            with self._lock:
                slot = self._index.get(block_hash)
                if slot is None or not self._read(slot, block_hash, row):
                    break
                slots.append(slot)
        with self._lock:
            self._found([slot for slot, h in zip(slots, hashes, strict=False) if self._hashes[slot] == h])
        return len(slots)

    def write(self, hashes: Sequence[bytes], data: Bytes) -> int:
        """As in `Tier`."""
        count = 0
        for block_hash, row in zip(hashes, data, strict=True):
            with self._lock:
                count += block_hash not in self._index and self._write(block_hash, row)
        return count

    def close(self) -> None:
        """As in `Tier`."""
        with self._lock:
            self._file.close()

    def _read(self, slot: int, block_hash: bytes, into: Bytes) -> bool:
        try:
            self._file.read(slot, block_hash, into)
        except Damaged:
            self.failures["checksum"] += 1
            self._drop(slot)
            return False
        except OSError:
            self.failures["io"] += 1
            return False
        return True

    def _write(self, block_hash: bytes, data: Bytes) -> bool:
        more = bool(self._free) and not (self._cramped and self._index)
        self._cramped = max(0, self._cramped - 1)
        slot = self._free.pop() if more else self._evict()
        try:
            self._file.write(slot, block_hash, data)
        except OSError as error:
            self.failures["full" if error.errno in _FULL else "io"] += 1
            self._free.append(slot)
            self._cramped = CRAMPED if more else 0
            return False
        self._order.given_out()
        self._take_in(slot, block_hash)
        return True

    def _evict(self) -> int:
        slot = self._order.evict(self._hashes)
        self._forget(slot)
        return slot

    def _take_in(self, slot: int, block_hash: bytes) -> None:
        self._hashes[slot], self._index[block_hash] = block_hash, slot
        self.changes.append((True, block_hash))
        self._order.come(slot, block_hash)
        self._order.keep([slot])

    def _found(self, slots: list[int]) -> None:
        for slot in slots:
            self._order.found(slot)
            self._order.take_back(slot)
        self._order.keep(slots)

    def _drop(self, slot: int) -> None:
        self._order.take_back(slot)
        self._forget(slot)
        with contextlib.suppress(OSError):  # it is found damaged again then
            self._file.clear(slot)
        self._free.append(slot)

    def _forget(self, slot: int) -> None:
        block_hash = self._hashes[slot]
        assert block_hash is not None
        self._hashes[slot] = None
        del self._index[block_hash]
        self.changes.append((False, block_hash))
