"""Sequences in the order in which they run, and what those that wait have to compute."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING

from octavo.cost_model import CostModel, attended
from octavo.engine.sequence import Group, Sequence
from octavo.kvcache.block_pool import BlockPool, Prefix
from octavo.request import BELOW_ALL

if TYPE_CHECKING:
    from octavo.engine.plan import StepPlan

_ORDER = attrgetter("order")


class OrderedSequences(list[Sequence]):
    """Sequences by their `order`, found by bisection: thousands may wait, and all be aborted at once."""

    def join(self, seq: Sequence) -> None:
        """Put a sequence where it belongs."""
        bisect.insort(self, seq, key=_ORDER)

    def before(self, priority: int) -> int:
        """How many have a lower priority, and so come before those that have this one."""
        return bisect.bisect_left(self, (priority,), key=_ORDER)

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        place = bisect.bisect_left(self, seq.order, key=_ORDER)
        found = place < len(self) and self[place] is seq
        if found:
            del self[place]
        return found

    def head(self, may_run: Callable[[str], bool] | None) -> Sequence | None:
        """The first of those that may run; None: all may."""
        if may_run is None:
            return self[0] if self else None
        return next((seq for seq in self if may_run(seq.group.request.request_id)), None)

    def first(self, like: Group) -> Sequence | None:
        """The first of a request's priority that is not the late sequence of a request."""
        priority = like.place.priority
        found = next(
            (self[place] for place in range(self.before(priority), len(self)) if not self[place].is_late), None
        )
        return found if found is not None and found.order[0] == priority else None

    # ---- what shares change, too (`fair_queues`) --------------------------------------------------------------------

    def giving_up(self, waiting: Sequence) -> Sequence | None:
        """Who of those that run gives up its place and blocks for one that waits."""
        return self[-1] if self and self[-1].order[0] >= BELOW_ALL > waiting.order[0] else None

    def claims(self, head: Sequence | None, wanted: Callable[[Sequence], int]) -> dict[Sequence, int]:
        """Tokens of the chunk that others may have to leave.

        Args:
            head: of the queue.
            wanted: how many it wants.
        """
        return {}

    def held_back(self, seq: Sequence, claims: dict[Sequence, int]) -> int:
        """How many a prompt leaves, whose turn it is."""
        return 0

    def charge(self, plan: StepPlan, cost_model: CostModel) -> None:
        """The next step is decided."""


class WaitingSequences(OrderedSequences):
    """Those that wait, with their backlog (`octavo.load.ShardState`) as sums that cost nothing to read.

    Attributes:
        above: how many are not below all others (`octavo.request.BELOW_ALL`), whom no sum counts.
        tokens: to compute, if the cache holds what is expected.
        attended: positions that these attend to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.above = self.tokens = self.attended = 0
        self._amounts: dict[Sequence, tuple[int, int]] = {}

    def join(self, seq: Sequence) -> None:
        """Put a sequence, of which nothing is computed, where it belongs."""
        super().join(seq)
        if seq.order[0] >= BELOW_ALL:
            return
        self.above += 1
        tokens = max(1, seq.num_known - seq.expected_cached)
        amounts = self._amounts[seq] = tokens, attended(seq.expected_cached, tokens)
        self._count(*amounts)

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        found = super().leave(seq)
        if found and (amounts := self._amounts.pop(seq, None)) is not None:
            self.above -= 1
            self._count(-amounts[0], -amounts[1])
        return found

    def _count(self, tokens: int, positions: int) -> None:
        self.tokens += tokens
        self.attended += positions


def blocks_to_start(seq: Sequence, cached: Prefix, pool: BlockPool, running: list[Sequence]) -> int:
    """Free blocks without which a sequence does not start.

    All known tokens must fit, not only the first chunk, and 1 % of the pool must be left to those that run: otherwise
    it would be preempted again at once.

    Args:
        cached: the blocks that it finds; of these, those without an owner count as free now.
    """
    beams, found = seq.group.beams, cached.blocks(pool.groups)
    wanted = max(pool.groups.held(seq.num_known, pool.block_size), 0 if beams is None else beams.blocks)
    unowned = sum(not pool.is_owned(block) for block in found)
    return wanted - len(found) + unowned + (pool.num_blocks // 100 if running else 0)


def requeue(groups: Iterable[Group], running: OrderedSequences, waiting: WaitingSequences, pool: BlockPool) -> None:
    """Have every sequence wait that has computed anything or is in a step, as if its step had never been."""
    for group in groups:
        for seq in group.sequences:
            if not running.leave(seq):
                waiting.leave(seq)
        for seq in group.reset(pool):
            waiting.join(seq)
