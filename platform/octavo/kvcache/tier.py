"""Where blocks lie that a pool had no room for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

Failure = Literal["checksum", "io", "late", "full", "busy"]
"""Why a block did not come (checksum: it is not what was written; late: computing it was to take less time), or was not
kept (full: the disk; busy: too much waits to be written)."""


class Tier(Protocol):
    """Keeps blocks by their hashes; what it gives back is what it was given, or nothing.

    Attributes:
        failures: counted.
        changes: blocks that it has taken in (True) or lost since somebody looked; whoever looks takes them out.
    """

    failures: Counter[Failure]
    changes: deque[tuple[bool, bytes]]

    def hashes(self) -> list[bytes]:
        """Of all blocks that are here; any thread may ask."""
        ...

    def lookup(self, chain: Sequence[bytes]) -> int:
        """How many of a chain's first blocks are here, most likely; any thread may ask, and nothing is waited for."""
        ...

    def read(self, hashes: Sequence[bytes], into: Bytes) -> int:
        """Read blocks, one a row; returns how many of the first ones came as they had been written."""
        ...

    def write(self, hashes: Sequence[bytes], data: Bytes) -> int:
        """Keep blocks, one a row, a chain's last ones first; returns how many are new here."""
        ...

    def close(self) -> None:
        """Give it up; what it keeps stays."""
        ...


class KVBlocks(Protocol):
    """The content of an executor's KV cache: blocks over all layers, as rows of bytes.

    Attributes:
        form: names layout, type, and all of the machine that a value's bits depend on: another cache of the same form
            can take a block in, if it has the same model.
        block_bytes: of a block.
    """

    form: str
    block_bytes: int

    def read(self, blocks: Sequence[int]) -> Callable[[], Bytes]:
        """Copy blocks as the steps that were launched leave them, and before any later step writes there.

        Returns:
            waits for the copy, a block a row; any thread may call it.
        """
        ...

    def write(self, blocks: Sequence[int], data: Bytes) -> None:
        """Put blocks, a row each, in their places: after the steps that were launched, before any later one."""
        ...


@dataclass(slots=True)
class TierCounters:
    """What has happened since the start.

    Attributes:
        wanted: blocks that were asked for, because the tier had them and computing them would have taken longer.
        came: of these.
        written: blocks.
        bytes_read, bytes_written: of blocks.
        read_seconds: until blocks that were asked for had come.
        failures: blocks, by reason.
    """

    wanted: int = 0
    came: int = 0
    written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    read_seconds: float = 0.0
    failures: dict[Failure, int] = field(default_factory=dict)
