"""One sequence's state in recurrent layers: taken up from a checkpoint, gone on with step by step, kept on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from octavo.kvcache.block_pool import BlockPool


class StateStep(NamedTuple):
    """What a step does with a sequence's state.

    Attributes:
        source: the state that it goes on from; -1: none, its first token begins.
        saves: (tokens of the sequence, state that holds what they leave), rising; the last is where it goes on.
        kept: hashes of the checkpoints that come of it.
    """

    source: int
    saves: list[tuple[int, int]]
    kept: list[bytes]


class SequenceState:
    """Where the state of a sequence lies, and where checkpoints of it are made:

        0 ..... k blocks ..... 2 k blocks ..... found in the cache ..... end of the prompt ..... last full block

    at every interval of the pool; where the cache held a longer prefix but no state, which somebody else will ask for,
    too; at the end of what was known when it started, to a block; and one that moves on with the last full block.

    Args:
        pool: of the sequence's blocks, which has states.
        found: the checkpoint that it starts from; -1: none.
        num_tokens: that the checkpoint is of.
        marks: tokens after which somebody is likely to ask for a checkpoint, whole blocks.
    """

    __slots__ = ("_last", "_marks", "_pool", "_states", "num_tokens", "state")

    def __init__(self, pool: BlockPool, found: int = -1, num_tokens: int = 0, marks: Iterable[int] = ()) -> None:
        assert pool.states is not None
        self._pool, self._states = pool, pool.states
        self.state, self.num_tokens, self._marks = found, num_tokens, frozenset(marks)
        self._last: bytes | None = None  # the checkpoint that is given up for the next one
        if found >= 0:
            self._states.share(found)

    def go_on(self, stop: int, hashes: Callable[[], Sequence[bytes]]) -> StateStep:
        """Plan a step up to `stop` tokens; `StatePool.num_free` must say that there is a state.

        Args:
            hashes: of the full blocks of known tokens.
        """
        source, states, kept = self.state, self._states, list[bytes]()
        if source >= 0 and self._is_block(self.num_tokens):
            kept += self._keep(hashes())
        if source >= 0 and not states.is_visible(source):
            target = source
        else:
            target = states.take()
            if source >= 0:
                states.leave(source)
        saves = []
        for tokens in self._stops(stop):
            block_hash = hashes()[tokens // self._pool.block_size - 1]
            if self._pool.find(block_hash) is not None and (state := states.take_for(block_hash)) is not None:
                saves.append((tokens, state))
                kept.append(block_hash)
        self.state, self.num_tokens = target, stop
        return StateStep(source, [*saves, (stop, target)], kept)

    def _is_block(self, tokens: int) -> bool:
        return self._pool.caching and tokens > 0 and tokens % self._pool.block_size == 0

    def _keep(self, chain: Sequence[bytes]) -> list[bytes]:
        """Keep the present state as a checkpoint, in place of the last one that was kept for no other reason."""
        block_hash = chain[self.num_tokens // self._pool.block_size - 1]
        if self._pool.find(block_hash) is None or not self._states.keep(block_hash, self.state):
            return []
        if self._last is not None:
            self._states.drop_unused(self._last)
        self._last = None if self._is_mark(self.num_tokens) else block_hash
        return [block_hash]

    def _is_mark(self, tokens: int) -> bool:
        return tokens in self._marks or tokens % (self._states.interval * self._pool.block_size) == 0

    def _stops(self, stop: int) -> list[int]:
        """Where checkpoints are to be made before the end of a step."""
        if not self._pool.caching or stop - self.num_tokens == 1:
            return []
        every = self._states.interval * self._pool.block_size
        first = (self.num_tokens // every + 1) * every
        marks = {mark for mark in self._marks if self.num_tokens < mark < stop}
        return sorted(marks.union(range(first, stop, every)))

    def fork(self) -> SequenceState:
        """Of a sequence that shares all that is computed."""
        fork = SequenceState(self._pool, self.state, self.num_tokens, self._marks)
        fork._last = self._last
        return fork

    def free(self, block_hash: bytes | None) -> None:
        """Give it up, and leave a checkpoint where that is at the end of a block.

        Args:
            block_hash: of the last block with a token in it, if it is published.
        """
        if self.state < 0:
            return
        kept = block_hash is not None and self._is_block(self.num_tokens) and self._states.keep(block_hash, self.state)
        if kept and self._last is not None:
            self._states.drop_unused(self._last)
        self._states.release(self.state)
        self.state = -1
