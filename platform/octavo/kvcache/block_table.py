"""One sequence's blocks: grown on demand, forked by sharing, freed by one call."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.eviction import Keeper
from octavo.kvcache.sequence_state import SequenceState


class BlockTable:
    """The blocks that hold one sequence's K and V, in order.

        tokens      0 ......... published ...... computed ... capacity
        blocks      [ findable by hash ][ own, being filled      ]

    Owns one reference to each of its blocks; `free` gives them all back.

    Attributes:
        state: of a model with recurrent layers: where it lies.
    """

    __slots__ = ("_keeper", "_pool", "blocks", "num_published", "state")

    def __init__(
        self, pool: BlockPool, cached: Sequence[int] = (), keeper: Keeper | None = None, marks: Iterable[int] = ()
    ) -> None:
        """Start with blocks found by `BlockPool.match`; they get this table as a further owner.

        Args:
            keeper: the sequence's tenant, if it has a share of the pool.
            marks: as in `SequenceState`.
        """
        self.state: SequenceState | None = None
        if pool.states is not None:
            found = None if not cached else pool.states.find(pool.hash_of(cached[-1]) or b"")
            assert (found is None) == (not cached), "blocks without a state"
            size = len(cached) * pool.block_size
            self.state = SequenceState(pool, -1 if found is None else found, size, marks)
        for block in cached:
            pool.reuse(block)
        self._pool, self._keeper = pool, keeper
        self.blocks = array("i", cached)  # 32-bit, read by numpy without conversion
        self.num_published = len(cached)

    def grow(self, write_from: int, num_tokens: int) -> list[tuple[int, int]] | None:
        """Make room to write the tokens [write_from, num_tokens).

        The block that holds `write_from` is copied first if others can read it (copy on write): the last, partly filled
        block of a forked sequence is shared, and that of a sequence which was shrunk may be published.

        Returns:
            The (source, target) block copies to make before writing; None when the pool has too few blocks, or no
            state, and then nothing has changed.
        """
        size = self._pool.block_size
        if self._pool.states is not None and not self._pool.states.num_free:
            return None
        first = write_from // size
        copy = first < len(self.blocks) and self._pool.is_visible(self.blocks[first])
        if not copy and num_tokens <= size * len(self.blocks):
            return []
        fresh = self._pool.take(-(-num_tokens // size) - len(self.blocks) + copy)
        if fresh is None:
            return None
        copies = []
        if copy:
            source, target = self.blocks[first], fresh.pop()
            self._pool.release([source])
            self.blocks[first] = target
            copies.append((source, target))
        self.blocks.extend(fresh)
        return copies

    def takes(self, write_from: int) -> int:
        """Blocks that `grow` takes for one token, or 1 where another owner of the same block may spare it that."""
        first = write_from // self._pool.block_size
        return first >= len(self.blocks) or int(self._pool.is_visible(self.blocks[first]))

    def publish(self, chain: Sequence[bytes], num_tokens: int) -> list[int]:
        """Publish the blocks that became full, `num_tokens` tokens being in the cache, or there before anyone reads.

        Returns:
            the blocks that the pool published; see `BlockPool.unpublish`.
        """
        start, full = self.num_published, num_tokens // self._pool.block_size
        if full <= start:
            return []
        self.num_published = full
        return self._pool.publish(self.blocks, chain, start, full)

    def shrink(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens; blocks that hold none of them are released.

        The last block that is kept may be published, or shared: `grow` copies it before anything is written there.
        """
        assert self.state is None, "what recurrent layers have taken in cannot be given back"
        size = self._pool.block_size
        kept = -(-num_tokens // size)
        self._pool.release(self.blocks[kept:], self._keeper)
        del self.blocks[kept:]
        self.num_published = min(self.num_published, num_tokens // size)

    def fork(self) -> BlockTable:
        """A second table over the same blocks."""
        table = BlockTable(self._pool, keeper=self._keeper)
        table.state = self.state and self.state.fork()
        for block in self.blocks:
            self._pool.share(block)
        table.blocks = self.blocks[:]
        table.num_published = self.num_published
        return table

    def free(self) -> None:
        """Give every block back, last first."""
        if self.state is not None and self.blocks:
            last = -(-self.state.num_tokens // self._pool.block_size) - 1
            self.state.free(self._pool.hash_of(self.blocks[last]))
        self._pool.release(self.blocks, self._keeper)
        self.blocks = array("i")
        self.num_published = 0
