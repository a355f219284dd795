"""One step: as the scheduler decided it, and what is remembered of it until its result arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from octavo.cost_model import StepWork, attended
from octavo.engine.behind import Behind
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.sequence_state import StateStep
from octavo.request import SequenceUpdate
from octavo.step import LogprobRow, StepResult

Take = Callable[[Iterable[LogprobRow]], None]
"""Takes log probabilities in."""

_NOTHING = StepWork(0, 0, 0, 0, has_prompts=False)


@dataclass(slots=True)
class StepPlan:
    """Which sequences compute how many tokens, and the block copies to make first.

    Attributes:
        entries: (sequence, tokens); the tokens follow those that the sequence has computed.
        states: what becomes of the state of each entry, where the model has recurrent layers.
        proposed: tokens that this step verifies, of those sequences that have any (`octavo.engine.proposals`).
        num_proposed: how many these are.
        behind: what the rows behind them keep to, of sequences that keep to something.
        copies: (source, target) blocks.
        published: blocks that this step fills and that can be found already (`BlockPool.unpublish`, if it fails).
        ended: of sequences that had nothing to compute.
        evicted: blocks whose published content goes for this step, and its hashes, where anybody wants that.
        filling: blocks that the step in flight fills, of those that are `published`.
        work: the step's content, as the cost model counts it.
        apart: no other step is laid out while it runs.
        admitted: the sequences of `entries` that begin with it.
    """

    entries: list[tuple[Sequence, int]] = field(default_factory=list)
    states: list[StateStep] = field(default_factory=list)
    proposed: dict[Sequence, list[int]] = field(default_factory=dict)
    num_proposed: int = 0
    behind: dict[Sequence, list[Behind]] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    ended: list[SequenceUpdate] = field(default_factory=list)
    evicted: list[tuple[int, bytes]] = field(default_factory=list)
    filling: frozenset[int] = frozenset()
    work: StepWork = _NOTHING
    apart: bool = False
    admitted: list[Sequence] = field(default_factory=list)

    def reached(self, *, advanced: bool) -> dict[str, dict[int, int]]:
        """What its living sequences have computed after the step: request id -> index -> tokens.

        Args:
            advanced: whether `Scheduler.advance` counts the step already.
        """
        reached: dict[str, dict[int, int]] = {}
        for seq, count in self.entries:
            if not seq.ended:
                tokens = seq.num_computed + (0 if advanced else count)
                reached.setdefault(seq.group.request.request_id, {})[seq.index] = tokens
        return reached

    @property
    def num_tokens(self) -> int:
        return self.work.tokens

    def sampled(self) -> Iterator[tuple[int, Sequence]]:
        """(position in `entries`, sequence) of those whose next token is sampled, in row order.

        A prompt that becomes n sequences is sampled n times: `Sequence.width` rows. So is the newest token of a
        sequence with k proposed ones, and each of those: k + 1 rows.
        """
        return ((i, seq) for i, (seq, count) in enumerate(self.entries) if count >= seq.remaining and seq.group.samples)

    def add(self, seq: Sequence, count: int, pool: BlockPool) -> None:
        """Put a sequence into the step and publish the blocks it fills there with known tokens.

        A step stores the keys and values of all of its tokens before any of them attends. So a sequence that is
        admitted later in this schedule may read those blocks: of many requests with one new prefix, the first computes
        it for all.
        """
        self.entries.append((seq, count))
        if published := seq.publish(pool, seq.num_computed + count):
            self.published += published
        if seq.table.state is not None:
            hashes = partial(seq.hashes, pool.block_size)
            self.states.append(seq.table.state.go_on(seq.num_computed + count, hashes))

    def widen(self, free: int) -> None:
        """Let n sequences start from a prompt that this step completes, as far as `free` places go."""
        for _, seq in self.sampled() if free > 0 else ():
            if not seq.group.forked:
                more = min(free, seq.group.num_starting - 1)
                seq.width = 1 + more
                free -= more

    def give_rows(self, sequences: Iterable[Sequence]) -> list[tuple[int, Sequence]]:
        """Count the tokens that are sampled of each sequence as known; returns `InFlight.rows`."""
        rows, row = [], 0
        for seq in sequences:
            count = 1 + len(self.proposed.get(seq, ())) if self.proposed else 1
            seq.num_pending += count
            seq.is_verifying = count > 1 or seq.group.beams is not None
            seq.row = row
            rows.append((row, seq))
            row += count
        return rows

    def advance(self, fork: Callable[[Sequence], list[Sequence]]) -> InFlight:
        """As `Scheduler.advance`.

        Args:
            fork: gives the sequences that go on from one of which a token is sampled.
        """
        asked: list[tuple[Take, int]] = []
        sampled: list[Sequence] = []
        complete: list[Sequence] = []
        pooled: list[tuple[int, Sequence]] = []
        for row, (seq, count) in enumerate(self.entries):
            if seq.untold is not None or seq.group.needs_every_position:
                asked += scores_of(seq, count)
            if count >= seq.remaining:
                if seq.group.method is not None:
                    pooled.append((row, seq))
                else:
                    (sampled if seq.group.samples else complete).append(seq)
            seq.num_computed += count
        rows = self.give_rows(each for seq in sampled for each in fork(seq))
        return InFlight(self.work, rows, self.proposed, complete, pooled, asked)

    def measure(self, *, has_prompts: bool) -> None:
        """Fill in `work`; the plan is complete and not launched."""
        tokens = positions = context = 0
        for seq, count in self.entries:
            tokens += count
            in_cache = seq.num_computed + count
            context += in_cache
            positions += in_cache if count == 1 else attended(seq.num_computed, count)
        self.work = StepWork(tokens, len(self.entries) + self.num_proposed, positions, context, has_prompts)


@dataclass(slots=True)
class InFlight:
    """What `Scheduler.commit` needs from the launch of a step: its sequences advance before its result arrives.

    Attributes:
        work: as in `StepPlan`.
        rows: (row, sequence) of the first token that is sampled of each sequence.
        proposed: as in `StepPlan`; such a sequence has a row more for each token.
        complete: sequences that sample nothing and have computed all they know with this step.
        pooled: (row in the step, sequence) of those whose vector it computes.
        scores: who takes log probabilities of known tokens that the step computes, and how many.
    """

    work: StepWork
    rows: list[tuple[int, Sequence]]
    proposed: dict[Sequence, list[int]]
    complete: list[Sequence]
    pooled: list[tuple[int, Sequence]]
    scores: list[tuple[Take, int]]

    def take_scores(self, result: StepResult) -> None:
        """Give the log probabilities of known tokens to those who asked for them."""
        rows = iter(result.prompt_logprobs)
        for take, count in self.scores:
            take(islice(rows, count))


def scores_of(seq: Sequence, count: int) -> list[tuple[Take, int]]:
    """`InFlight.scores` of a sequence that computes its next `count` tokens: of its prompt, and of forced tokens."""
    asked: list[tuple[Take, int]] = []
    if wanted := num_prompt_logprobs(seq, count):
        asked.append((seq.group.take_prompt_logprobs, wanted))
    if seq.untold is not None and (forced := seq.untold.wanted(seq.num_computed, count)):
        asked.append((partial(seq.untold.take, forced.start), len(forced)))
    return asked


def num_prompt_logprobs(seq: Sequence, count: int) -> int:
    """How many of the next `count` tokens of a sequence predict a prompt token whose log probability was asked for."""
    if not seq.group.needs_every_position:
        return 0
    return max(0, min(seq.num_computed + count, seq.num_prompt - 1) - seq.num_computed)
