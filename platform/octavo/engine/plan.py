"""One step: as the scheduler decided it, and what is remembered of it until its result arrives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from octavo.cost_model import StepWork, attended
from octavo.engine.sequence import Group, Sequence
from octavo.request import SequenceUpdate
from octavo.step import StepResult

_NOTHING = StepWork(0, 0, 0, 0, has_prompts=False)


@dataclass(slots=True)
class StepPlan:
    """Which sequences compute how many tokens, and the block copies to make first.

    Attributes:
        entries: (sequence, tokens); the tokens follow those that the sequence has computed.
        copies: (source, target) blocks.
        published: blocks that this step fills and that can be found already (`BlockPool.unpublish`, if it fails).
        ended: of sequences that had nothing to compute.
        work: the step's content, as the cost model counts it.
    """

    entries: list[tuple[Sequence, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    ended: list[SequenceUpdate] = field(default_factory=list)
    work: StepWork = _NOTHING

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

        A prompt that becomes n sequences is sampled n times: `Sequence.width` rows.
        """
        return ((i, seq) for i, (seq, count) in enumerate(self.entries) if count == seq.remaining and seq.group.samples)

    def measure(self, *, has_prompts: bool) -> None:
        """Fill in `work`; the plan is complete and not launched."""
        tokens = positions = context = 0
        for seq, count in self.entries:
            tokens += count
            in_cache = seq.num_computed + count
            context += in_cache
            positions += in_cache if count == 1 else attended(seq.num_computed, count)
        self.work = StepWork(tokens, len(self.entries), positions, context, has_prompts)


@dataclass(slots=True)
class InFlight:
    """What `Scheduler.commit` needs from the launch of a step: its sequences advance before its result arrives.

    Attributes:
        work: as in `StepPlan`.
        rows: the sequence that each row's token belongs to.
        complete: sequences that sample nothing and have computed all they know with this step.
        published: as in `StepPlan`.
        prompt_logprobs: whose prompt tokens' log probabilities the step computes, and how many.
    """

    work: StepWork
    rows: list[Sequence]
    complete: list[Sequence]
    published: list[int]
    prompt_logprobs: list[tuple[Group, int]]

    def take_prompt_logprobs(self, result: StepResult) -> None:
        """Give the log probabilities of prompts to those who asked for them."""
        rows = iter(result.prompt_logprobs)
        for group, count in self.prompt_logprobs:
            group.take_prompt_logprobs(islice(rows, count))


def num_prompt_logprobs(seq: Sequence, count: int) -> int:
    """How many of the next `count` tokens of a sequence predict a prompt token whose log probability was asked for."""
    if not seq.group.needs_every_position:
        return 0
    return max(0, min(seq.num_computed + count, seq.num_prompt - 1) - seq.num_computed)
