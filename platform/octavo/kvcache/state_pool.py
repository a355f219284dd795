"""What recurrent layers carry of a sequence: which states are whose, which are checkpoints, which go first.

A recurrent layer keeps no row for each token but a state of one size, which is that of all tokens so far. So a prefix
can be gone on from only where its state was kept: a checkpoint, at a block's end, under that block's hash. It goes with
its block, or before it, when states are short: the one that nobody has asked for the longest.

Every state is blank, a checkpoint without an owner, or owned, and `check_integrity` proves it. A step reads the state
that a sequence has and writes the one that it has after it, which is another one wherever somebody else may read the
first: a sibling, or whoever finds the checkpoint. So nothing is ever copied.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class StatePool:
    """Reference-counted states with an index of checkpoints.

    What the step that is planned reads is not written in the same step, and what it writes is not read there: states
    that are left, and checkpoints that it makes, change hands in `begin_step`.

    Args:
        num_states: in the pool.
        interval: blocks between the checkpoints of a long prompt.
    """

    def __init__(self, num_states: int, interval: int) -> None:
        self.num_states, self.interval = num_states, interval
        self._references = [0] * num_states
        self._hashes: list[bytes | None] = [None] * num_states
        self._index: dict[bytes, int] = {}
        self._blank = list(range(num_states - 1, -1, -1))  # a stack: low ids first
        self._cached: OrderedDict[int, None] = OrderedDict()  # checkpoints without an owner, the oldest first
        self._left: list[int] = []  # given up by the step that is planned
        self._coming: dict[bytes, int] = {}  # checkpoints that it makes
        self._reserved = 0

    @property
    def num_free(self) -> int:
        """States that `take` can hand out."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Checkpoints that no sequence has."""
        return len(self._cached)

    def places(self, running: int) -> int:
        """Sequences that can start beside those that run, if each of these may need another state in its next step."""
        after = self.num_free + len(self._left) + len(self._coming)
        return min(self.num_free - 1, (after - running) // 2)  # what it starts from counts as free

    def begin_step(self, running: int) -> None:
        """The step that was planned is launched or undone: what it left can be had, what it kept can be found.

        Args:
            running: sequences that run, for each of which a state is set apart.
        """
        self._reserved = running + 1
        for state in self._left:
            self.release(state)
        self._left = []
        for block_hash, state in self._coming.items():
            self.keep(block_hash, state)
            self.release(state)
        self._coming = {}

    def take(self) -> int:
        """A state for a new owner; `num_free` says whether there is one."""
        if self._blank:
            state = self._blank.pop()
        else:
            state, _ = self._cached.popitem(last=False)
            self._forget(state)
        self._references[state] = 1
        return state

    def take_for(self, block_hash: bytes) -> int | None:
        """A state for the checkpoint that the planned step makes; None where there is one, or none is to spare."""
        if block_hash in self._index or block_hash in self._coming or self.num_free <= self._reserved:
            return None
        state = self._coming[block_hash] = self.take()
        return state

    def share(self, state: int) -> None:
        """Add an owner to a state that is owned, or a checkpoint."""
        if self._references[state] == 0:
            del self._cached[state]
        self._references[state] += 1

    def leave(self, state: int) -> None:
        """Take an owner away once the planned step has read the state."""
        self._left.append(state)

    def release(self, state: int) -> None:
        """Take an owner away now."""
        self._references[state] -= 1
        if self._references[state] == 0:
            if self._hashes[state] is None:
                self._blank.append(state)
            else:
                self._cached[state] = None

    def is_visible(self, state: int) -> bool:
        """Whether others than one owner read the state: it must not be written."""
        return self._references[state] > 1 or self._hashes[state] is not None

    def find(self, block_hash: bytes) -> int | None:
        """The checkpoint at the end of a block."""
        return self._index.get(block_hash)

    def keep(self, block_hash: bytes, state: int) -> bool:
        """Make an owned state findable; False where there is such a checkpoint already."""
        if block_hash in self._index or self._hashes[state] is not None:
            return False
        self._index[block_hash], self._hashes[state] = state, block_hash
        return True

    def drop(self, block_hash: bytes) -> None:
        """A checkpoint can be found no more, if there is one: its block is gone, or its content was never written."""
        if (state := self._coming.pop(block_hash, None)) is not None:
            self._left.append(state)
        if (state := self._index.get(block_hash)) is not None:
            self._forget(state)
            if self._references[state] == 0:
                del self._cached[state]
                self._blank.append(state)

    def drop_unused(self, block_hash: bytes) -> None:
        """The same, unless a sequence has it."""
        if (state := self._index.get(block_hash)) is not None and self._references[state] == 0:
            self.drop(block_hash)

    def clear(self) -> None:
        """Forget all checkpoints; owned states stay with their owners."""
        for block_hash in [*self._index, *self._coming]:
            self.drop(block_hash)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Prove that every state is blank, a checkpoint or owned, and has as many owners as it counts.

        Args:
            owned: the state of every living owner.

        Raises:
            AssertionError: with the sum that is wrong.
        """
        counts = Counter([*owned, *self._left, *self._coming.values()])
        wrong = {s: (n, counts[s]) for s, n in enumerate(self._references) if n != counts[s]}
        assert not wrong, f"state counts differ from owners (state: counted, owners): {wrong}"
        assert sorted([*self._blank, *self._cached, *counts]) == list(range(self.num_states)), "a state is lost"
        assert {h: s for s, h in enumerate(self._hashes) if h is not None} == self._index, "index and states disagree"
        assert all(self._hashes[s] is None for s in self._blank), "a blank state has a hash"
        assert all(self._hashes[s] is not None for s in self._cached), "a cached state has no hash"

    def _forget(self, state: int) -> None:
        block_hash = self._hashes[state]
        assert block_hash is not None
        del self._index[block_hash]
        self._hashes[state] = None
