"""What a step may hold of requests below all others (`octavo.request.BELOW_ALL`), so that the others do not feel them.

Where nothing else runs or waits they have the whole step, which prompts make no longer than `budget.ALONE_SECONDS`:
somebody who comes meanwhile waits for it. No other step is laid out while it runs, unless it is very short
(`SHORT_SECONDS`), for who comes would wait for both. Where the executor can it ends such a step between two layers once
somebody comes, and it is taken back (`take_back`): blocks stay where they are and are written again.

Where anything else runs or waits, none of them starts, and of those that run the first few get their tokens: as many as
make the step longer by no more than `SHARE`, as the cost model has it. The rest keep their places and blocks until
somebody needs them; what they have computed is then usually found in the prefix cache.
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.cost_model import CostModel
from octavo.engine.plan import InFlight, StepPlan
from octavo.engine.queues import OrderedSequences
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool
from octavo.request import BELOW_ALL

SHARE = 0.03
SHORT_SECONDS = 0.005


class Part(NamedTuple):
    """What a step may hold.

    Attributes:
        running: of the sequences that run, the first so many.
        beside: how many of these are below all others, where others are there.
        alone: no others are there.
    """

    running: int
    beside: int = 0
    alone: bool = False

    def held(self, running: OrderedSequences) -> int:
        """How many sequences keep their place and take no part in the step."""
        if self.alone or not running or not is_below(running[-1]):
            return 0
        return max(0, len(running) - running.before(BELOW_ALL) - self.beside)


def is_below(seq: Sequence) -> bool:
    """Whether a sequence belongs to a request below all others."""
    return seq.order[0] >= BELOW_ALL


def part_of(running: OrderedSequences, head: Sequence | None, cost_model: CostModel) -> Part:
    """What the next step may hold.

    Args:
        head: the first of those that wait.
    """
    alone = (not running or is_below(running[0])) and (head is None or is_below(head))
    if alone or not running or not is_below(running[-1]):
        return Part(len(running), alone=alone)
    above = running.before(BELOW_ALL)
    beside = _beside(running[:above], running[above:], cost_model)
    return Part(above + beside, beside)


def may_give_way(plan: StepPlan) -> bool:
    """Whether a step can be taken back: each of its sequences is a request, and nothing was drawn up for it alone."""
    if not plan.apart or plan.states or plan.proposed:
        return False
    return not any(
        seq.constraint is not None or seq.group.request.params.num_places > 1 or seq.group.needs_every_position
        for seq, _ in plan.entries
    )


def take_back(plan: StepPlan, step: InFlight, pool: BlockPool) -> None:
    """Undo a step that gave way, the only one in flight: its sequences have computed what they had before it.

    Those that began with it may have found blocks that it was to fill: they are to begin again.
    """
    for _, seq in step.rows:
        if not seq.ended:
            seq.num_pending -= 1
    for seq, count in plan.entries:
        if not seq.ended:
            seq.num_computed -= count
            seq.table.num_published = min(seq.table.num_published, seq.num_computed // pool.block_size)


def above_all(running: list[Sequence]) -> tuple[list[Sequence], int]:
    """Those that are not below all others, and how many blocks the others hold, which they give up at once."""
    if not running or not is_below(running[-1]):
        return running, 0
    below = [seq for seq in running if is_below(seq)]
    return running[: len(running) - len(below)], sum(len(seq.table.held()) for seq in below)


def _beside(above: list[Sequence], below: list[Sequence], cost_model: CostModel) -> int:
    """How many may get a token beside those above them."""
    cost = cost_model.published
    left = SHARE * (cost.step + sum(_seconds(seq, cost_model) for seq in above))
    for number, seq in enumerate(below):
        left -= (seconds := _seconds(seq, cost_model))
        if left < 0 or not seconds or not seq.is_decoding:
            return number
    return len(below)


def _seconds(seq: Sequence, cost_model: CostModel) -> float:
    """What a sequence's next token takes; 0.0 as long as nobody knows."""
    cost = cost_model.published
    return cost.token + cost.sequence + (cost.attended + cost.context) * seq.num_known
