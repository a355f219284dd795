"""Where blocks lie that a pool had no room for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

Failure = Literal["checksum", "io", "late", "gone", "full", "busy"]
"""Why a block did not come (checksum: it is not what was written; late: computing it was to take less time; gone: who
was said to have it has not), or was not kept (full: the disk; busy: too much waits to be written)."""


class BlockSource(Protocol):
    """Has blocks by their hashes; what it gives is what was computed, or nothing.

    Attributes:
        failures: counted.
    """

    failures: Counter[Failure]

    def read(self, hashes: Sequence[bytes], into: Bytes) -> int:
        """Read blocks, one a row; returns how many of the first ones came as they had been written."""
        ...

    def close(self) -> None:
        """Give it up; what it keeps stays."""
        ...


class Tier(BlockSource, Protocol):
    """Keeps blocks as well.

    Attributes:
        changes: blocks that it has taken in (True) or lost since somebody looked; whoever looks takes them out.
    """

    changes: deque[tuple[bool, bytes]]

    def hashes(self) -> list[bytes]:
        """Of all blocks that are here; any thread may ask."""
        ...

    def lookup(self, chain: Sequence[bytes]) -> int:
        """How many of a chain's first blocks are here, most likely; any thread may ask, and nothing is waited for."""
        ...

    def write(self, hashes: Sequence[bytes], data: Bytes) -> int:
        """Keep blocks, one a row, a chain's last ones first; returns how many are new here."""
        ...


class Peers(Protocol):
    """Other shards of the model, as sources of blocks.

    Attributes:
        failures: of all of them.
    """

    failures: Counter[Failure]

    def find(self, name: str) -> BlockSource | None:
        """A shard, by the name that routers give it; None where nobody has said yet where it is."""
        ...

    def close(self) -> None:
        """Leave them all."""
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
