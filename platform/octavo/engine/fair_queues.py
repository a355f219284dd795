"""Sequences that run and wait under `scheduling_policy: fair`: by the shares that their tenants have had.

In every step, those that run are put in order: by priority, then the least served tenant first (`octavo.fairness`). So
the prompts of who has had most come last when the chunk is shared out, and its blocks go first when blocks run out. A
sequence that waits goes before the prompts of those who give way to its tenant, and takes the places and blocks that it
lacks from them. What is taken stays in the prefix cache: a block or two of it are computed
again.

A step is charged once it is decided: what each sequence adds to its predicted seconds, and as large a part of what it
takes whatever is in it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from functools import partial

from octavo.cost_model import Cost, CostModel, attended
from octavo.engine.plan import StepPlan
from octavo.engine.queues import OrderedSequences, WaitingSequences
from octavo.engine.sequence import Group, Sequence
from octavo.fairness import SchedulingPolicy, Shares, gives_way


def queues_of(policy: SchedulingPolicy) -> tuple[OrderedSequences, WaitingSequences]:
    """Empty queues of those that run and those that wait."""
    if policy != "fair":
        return OrderedSequences(), WaitingSequences()
    shares = Shares()
    return FairRunning(shares), FairWaiting(shares)


class FairRunning(OrderedSequences):
    """Those that run, as `arrange` has put them; who joins is last until then."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares

    def join(self, seq: Sequence) -> None:
        """Add a sequence behind those of its priority."""
        bisect.insort(self, seq, key=lambda each: each.order[0])

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        if found := seq in self:
            self.remove(seq)
        return found

    def arrange(self) -> None:
        """The least served first, but for beam searches: they keep their order before all others of their priority."""
        self.sort(key=lambda seq: (seq.order[0], -math.inf, seq.order) if seq.group.beams else _turn(self._shares, seq))

    def gives_way(self, seq: Sequence, waiting: Sequence) -> bool:
        """Whether its tenant is a turn ahead of the other's, their priorities being the same."""
        if seq.order[0] != waiting.order[0]:
            return super().gives_way(seq, waiting)
        if seq.group.beams is not None:  # it would begin again, and two of them end each other's work for ever
            return False
        other = waiting.group.request
        levels = self._shares.level(seq.group.request.tenant), self._shares.level(other.tenant)
        return gives_way(*levels, other.weight, self._shares.step)

    def charge(self, plan: StepPlan, cost_model: CostModel) -> None:
        """Charge a step to the tenants of its sequences."""
        cost, seconds, weights = cost_model.published, dict[str, float](), dict[str, float]()
        for seq, count in plan.entries:
            request = seq.group.request
            own = own_seconds(cost, seq.num_computed, count) + cost.step / len(plan.entries)
            seconds[request.tenant] = seconds.get(request.tenant, 0.0) + own
            weights[request.tenant] = request.weight
        self._shares.charge(seconds, weights)


class FairWaiting(WaitingSequences):
    """Those that wait, with a queue for each tenant."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares
        self._tenants: dict[str, OrderedSequences] = {}

    def join(self, seq: Sequence) -> None:
        """Put a sequence, of which nothing is computed, where it belongs."""
        super().join(seq)
        tenant = seq.group.request.tenant
        if tenant not in self._tenants:
            self._tenants[tenant] = OrderedSequences()
            self._shares.waits(tenant, seq.group.request.weight)
        self._tenants[tenant].join(seq)

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        found = super().leave(seq)
        tenant = seq.group.request.tenant
        if found:
            self._tenants[tenant].leave(seq)
            if not self._tenants[tenant]:
                del self._tenants[tenant]
                self._shares.served(tenant)
        return found

    def head(self, may_run: Callable[[str], bool] | None) -> Sequence | None:
        """Who runs next, of those that may."""
        heads = [head for queue in self._tenants.values() if (head := queue.head(may_run)) is not None]
        return min(heads, key=partial(_turn, self._shares), default=None)

    def first(self, like: Group) -> Sequence | None:
        """The first of its own tenant."""
        queue = self._tenants.get(like.request.tenant)
        return None if queue is None else queue.first(like)


def own_seconds(cost: Cost, start: int, count: int) -> float:
    """What a sequence that has computed `start` tokens adds to a step with its next `count`."""
    return cost.token * count + cost.sequence + cost.attended * attended(start, count) + cost.context * (start + count)


def _turn(shares: Shares, seq: Sequence) -> tuple[int, float, tuple[int, float, int, int]]:
    """Whose turn it is: lower goes first."""
    return seq.order[0], shares.level(seq.group.request.tenant), seq.order
