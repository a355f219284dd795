"""Slots for blocks in this process's memory (`octavo.kvcache.slot_tier.Slots`).

Nothing is checked when it is read: it is trusted as the cache's own memory is. No page is taken before a block lies
there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from octavo.kvcache.tier import Bytes


class SlotMemory:
    """Empty slots.

    Args:
        slot_bytes: of a block.
        num_slots: how many.

    Raises:
        MemoryError: the system does not give so much.
    """

    def __init__(self, slot_bytes: int, num_slots: int) -> None:
        self.num_slots = num_slots
        self._data: Bytes = np.zeros((num_slots, slot_bytes), np.uint8)

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """None is left from before."""
        return iter(())

    def read(self, slot: int, block_hash: bytes, into: Bytes) -> None:
        """Copy a block."""
        into[:] = self._data[slot]

    def write(self, slot: int, block_hash: bytes, data: Bytes) -> None:
        """Put a block into a slot."""
        self._data[slot] = data

    def clear(self, slot: int) -> None:
        """What a slot holds is not there any more; nothing is to be done."""

    def close(self) -> None:
        """Give the memory back."""
        del self._data
