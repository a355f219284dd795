"""Sequences that run and wait under `scheduling_policy: fair`: by the shares that their tenants have had.

A tenant that is a turn ahead of another (`octavo.fairness`) gives way to it: its prompts leave that one's the chunk,
and its sequences the places and blocks that one lacks. A sequence gives these up only when it has decoded for ten times
as long as it takes to compute it again, so that little work is done twice, whatever the cache keeps of it, and
everybody gets on. Those that run stay in the order of their places: when blocks run out, the last of them goes, as
without shares.

A step is charged once it is decided: what each sequence adds to its predicted seconds, and as large a part of what it
takes whatever is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from octavo.cost_model import NO_COST, Cost, CostModel, attended
from octavo.engine.plan import StepPlan
from octavo.engine.queues import OrderedSequences, WaitingSequences
from octavo.engine.sequence import Group, Sequence
from octavo.fairness import SchedulingPolicy, Shares, gives_way

WASTE = 0.1
"""Most of a sequence's time that is spent again on what it had computed when it gave its blocks up. In a pool for five
sequences all requests of four tenants take 4 to 9 % longer than without shares; at 1.0 they take 17 % longer."""


def queues_of(policy: SchedulingPolicy) -> tuple[OrderedSequences, WaitingSequences]:
    """Empty queues of those that run and those that wait."""
    if policy != "fair":
        return OrderedSequences(), WaitingSequences()
    shares = Shares()
    return FairRunning(shares), FairWaiting(shares)


class FairRunning(OrderedSequences):
    """Those that run, and who gives way to whom."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares
        self._cost = NO_COST
        self._known: dict[Sequence, int] = {}  # tokens when they joined

    def join(self, seq: Sequence) -> None:
        """Put a sequence where it belongs."""
        super().join(seq)
        self._known[seq] = seq.num_known

    def leave(self, seq: Sequence) -> bool:
        """Take a sequence out; False where it is not here."""
        self._known.pop(seq, None)
        return super().leave(seq)

    def giving_up(self, waiting: Sequence) -> Sequence | None:
        """The last of those who have decoded long enough and give way to it."""
        if (last := super().giving_up(waiting)) is not None:
            return last
        return next((seq for seq in reversed(self) if self._gives_way(seq, waiting) and self._may_go(seq)), None)

    def claims(self, head: Sequence | None, wanted: Callable[[Sequence], int]) -> dict[Sequence, int]:
        """The prompts that are computed, and the one that waits."""
        found = {seq: seq.remaining for seq in self if not seq.is_decoding}
        if head is not None and any(self._gives_way(seq, head) for seq in found):
            found[head] = wanted(head)
        return found

    def held_back(self, seq: Sequence, claims: dict[Sequence, int]) -> int:
        """What those want to whom it gives way, and whose turn has not come yet."""
        claims.pop(seq, None)
        return sum(tokens for other, tokens in claims.items() if self._gives_way(seq, other))

    def _gives_way(self, seq: Sequence, other: Sequence) -> bool:
        request, shares = other.group.request, self._shares
        levels = shares.level(seq.group.request.tenant), shares.level(request.tenant)
        return seq.order[0] == other.order[0] and gives_way(*levels, request.weight, shares.step)

    def _may_go(self, seq: Sequence) -> bool:
        decoded = seq.num_known - self._known[seq]
        again = own_seconds(self._cost, 0, seq.num_computed)
        # a beam search would begin from its prompt
        return seq.group.beams is None and decoded > 0 and WASTE * decoded * self._shares.step >= again

    def charge(self, plan: StepPlan, cost_model: CostModel) -> None:
        """Charge a step to the tenants of its sequences."""
        self._cost = cost_model.published
        weights = {seq.group.request.tenant: seq.group.request.weight for seq, _ in plan.entries}
        self._shares.charge(seconds_of(plan, self._cost), weights)


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


def seconds_of(plan: StepPlan, cost: Cost) -> dict[str, float]:
    """What each tenant has of a step that is not launched."""
    seconds = dict[str, float]()
    for seq, count in plan.entries:
        tenant = seq.group.request.tenant
        own = own_seconds(cost, seq.num_computed, count) + cost.step / len(plan.entries)
        seconds[tenant] = seconds.get(tenant, 0.0) + own
    return seconds


def own_seconds(cost: Cost, start: int, count: int) -> float:
    """What a sequence that has computed `start` tokens adds to a step with its next `count`."""
    return cost.token * count + cost.sequence + cost.attended * attended(start, count) + cost.context * (start + count)


def _turn(shares: Shares, seq: Sequence) -> tuple[int, float, tuple[int, float, int, int]]:
    """Whose turn it is: lower goes first."""
    return seq.order[0], shares.level(seq.group.request.tenant), seq.order
