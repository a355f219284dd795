"""Blocks that were evicted lately: when, and for whom."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

MOST = 65_536
"""Blocks that are remembered: about 250 bytes each."""


class Gone(NamedTuple):
    """How a block left.

    Attributes:
        time: of the step that took it, on the engine's clock.
        taker: the request that got its memory.
    """

    time: float
    taker: str


class GoneBlocks:
    """The last `most` evicted blocks, by hash.

    Attributes:
        time, taker: of who takes blocks now; whoever plans a step sets them.
    """

    def __init__(self, most: int = MOST) -> None:
        self.time = 0.0
        self.taker = ""
        self._most = most
        self._gone: OrderedDict[bytes, Gone] = OrderedDict()

    def add(self, block_hash: bytes) -> None:
        """A block goes, for who takes blocks now."""
        self._gone[block_hash] = Gone(self.time, self.taker)
        if len(self._gone) > self._most:
            self._gone.popitem(last=False)

    def find(self, block_hash: bytes) -> Gone | None:
        """How a block left, the last time; None where that is not known. Another thread may ask."""
        return self._gone.get(block_hash)
