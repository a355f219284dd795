"""One sequence's blocks: grown on demand, forked by sharing, freed by one call."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from octavo.kvcache.block_pool import BlockPool, Prefix
from octavo.kvcache.eviction import Keeper
from octavo.kvcache.sequence_state import SequenceState


class BlockTable:
    """The blocks that hold one sequence's K and V, in order.

        tokens      0 ......... published ...... computed ... capacity
        blocks      [ findable by hash ][ own, being filled      ]
        windowed    [ given back ][ first ... held               ]

    Owns one reference to each of its blocks; `free` gives them all back.

    Attributes:
        tables: the blocks of each group of layers (`LayerGroups`), all of one length.
        first: of windowed groups the first block that is held; entries before it mean nothing.
        state: of a model with recurrent layers: where it lies.
    """

    __slots__ = ("_keeper", "_pool", "first", "num_published", "state", "tables")

    def __init__(
        self, pool: BlockPool, cached: Prefix | None = None, keeper: Keeper | None = None, marks: Iterable[int] = ()
    ) -> None:
        """Start with blocks found by `BlockPool.match`; they get this table as a further owner.

        Args:
            keeper: the sequence's tenant, if it has a share of the pool.
            marks: as in `SequenceState`.
        """
        self.state: SequenceState | None = None
        if pool.states is not None:
            last = pool.hash_of(cached.tables[0][-1]) if cached else None
            found = None if last is None else pool.states.find(last)
            assert (found is None) == (not cached), "blocks without a state"
            size = len(cached or ()) * pool.block_size
            self.state = SequenceState(pool, -1 if found is None else found, size, marks)
        self._pool, self._keeper = pool, keeper
        if cached is None:
            self.tables, self.first, self.num_published = [array("i") for _ in range(pool.groups.count)], 0, 0
            return
        for block in cached.blocks(pool.groups):
            pool.reuse(block)
        # 32-bit, read by numpy without conversion
        self.tables, self.first, self.num_published = [array("i", t) for t in cached.tables], cached.first, len(cached)

    @property
    def blocks(self) -> array[int]:
        """Those of the first group."""
        return self.tables[0]

    def held(self) -> Sequence[int]:
        """All blocks that it owns; of what is at one place the first group's first."""
        if len(self.tables) == 1 and not self.first:
            return self.tables[0]
        whole, count = self._pool.groups.whole, len(self.tables)
        return [
            self.tables[group][place]
            for place in range(len(self.tables[0]))
            for group in range(whole if place < self.first else count)
        ]

    def grow(self, write_from: int, num_tokens: int) -> list[tuple[int, int]] | None:
        """Make room to write the tokens [write_from, num_tokens).

        The block that holds `write_from` is copied first if others can read it (copy on write): the last, partly filled
        block of a forked sequence is shared, and that of a sequence which was shrunk may be published.

        Returns:
            The (source, target) block copies to make before writing; None when the pool has too few blocks, or no
            state, and then nothing has changed.
        """
        pool, tables = self._pool, self.tables
        if pool.states is not None and not pool.states.num_free:
            return None
        size, first, length = pool.block_size, write_from // pool.block_size, len(tables[0])
        copied = [table for table in tables if pool.is_visible(table[first])] if first < length else []
        if not copied and num_tokens <= size * length:
            return []
        more = -(-num_tokens // size) - length
        fresh = pool.take(more * len(tables) + len(copied))
        if fresh is None:
            return None
        copies = []
        for table in copied:
            source, target = table[first], fresh.pop()
            pool.release([source])
            table[first] = target
            copies.append((source, target))
        for group, table in enumerate(tables):
            table.extend(fresh[group * more : (group + 1) * more])
        return copies

    def takes(self, write_from: int) -> int:
        """Blocks that `grow` takes for one token, or more where another owner of the same ones may spare it that."""
        first = write_from // self._pool.block_size
        if first >= len(self.tables[0]):
            return len(self.tables)
        return sum(self._pool.is_visible(table[first]) for table in self.tables)

    def publish(self, chain: Sequence[bytes], num_tokens: int) -> list[int]:
        """Publish the blocks that became full, `num_tokens` tokens being in the cache, or there before anyone reads.

        Returns:
            the blocks that the pool published; see `BlockPool.unpublish`.
        """
        start, full = self.num_published, num_tokens // self._pool.block_size
        if full <= start:
            return []
        self.num_published = full
        published: list[int] = []
        for group, table in enumerate(self.tables):
            published += self._pool.publish(table, chain, max(start, self._first_of(group)), full, group)
        return published

    def pass_by(self, num_computed: int) -> None:
        """Give back what no token after the first `num_computed` sees: blocks of windowed groups."""
        groups = self._pool.groups
        first = min(groups.first(num_computed, self._pool.block_size), len(self.tables[0])) if groups.windowed else 0
        if first > self.first:
            windowed = self.tables[groups.whole :]
            passed = [table[place] for place in range(self.first, first) for table in windowed]
            self.first = first
            self._pool.release(passed, self._keeper, passed=True)

    def goes_on_from(self, num_tokens: int) -> bool:
        """Whether all blocks are held that tokens after the first `num_tokens` see."""
        return self._pool.groups.first(num_tokens, self._pool.block_size) >= self.first

    def shrink(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens; blocks that hold none of them are released.

        The last block that is kept may be published, or shared: `grow` copies it before anything is written there.
        """
        assert self.state is None, "what recurrent layers have taken in cannot be given back"
        size = self._pool.block_size
        kept = -(-num_tokens // size)
        for group, table in enumerate(self.tables):
            self._pool.release(table[max(kept, self._first_of(group)) :], self._keeper)
            del table[kept:]
        self.first = min(self.first, kept)
        self.num_published = min(self.num_published, num_tokens // size)

    def fork(self) -> BlockTable:
        """A second table over the same blocks."""
        table = BlockTable(self._pool, keeper=self._keeper)
        table.state = self.state and self.state.fork()
        for block in self.held():
            self._pool.share(block)
        table.tables = [each[:] for each in self.tables]
        table.first, table.num_published = self.first, self.num_published
        return table

    def free(self) -> None:
        """Give every block back, last first."""
        if self.state is not None and self.blocks:
            last = -(-self.state.num_tokens // self._pool.block_size) - 1
            self.state.free(self._pool.hash_of(self.blocks[last]))
        self._pool.release(self.held(), self._keeper)
        self.tables = [array("i") for _ in self.tables]
        self.first = self.num_published = 0

    def _first_of(self, group: int) -> int:
        """The first block of a group that is held."""
        return self.first if group >= self._pool.groups.whole else 0


def lay_out(tables: Sequence[BlockTable], spare: int = 0) -> npt.NDArray[np.int32]:
    """Block tables as `octavo.step.StepBatch` has them.

    Args:
        spare: further columns, to grow into.
    """
    groups, width = len(tables[0].tables), max(len(table.blocks) for table in tables) + spare
    out = np.zeros((groups, len(tables), width), np.int32)
    for row, table in enumerate(tables):
        fill_in(out, row, table)
    return out if groups > 1 else out[0]


def fill_in(out: npt.NDArray[np.int32], row: int, table: BlockTable) -> None:
    """Write a sequence's blocks into its row of what `lay_out` made."""
    for group, blocks in enumerate(table.tables):
        (out if out.ndim == 2 else out[group])[row, : len(blocks)] = blocks
