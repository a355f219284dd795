"""What a shard says of itself: its counters, and its `ShardState` from the scheduler's books."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

from octavo.config import EngineConfig
from octavo.cost_model import Cost, attended
from octavo.engine.queues import WaitingSequences
from octavo.engine.recent import Origin
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool
from octavo.load import ShardState

REMEMBERED = 512
"""Sequences over which the length of answers is averaged: many enough for a mean, few enough to follow the users."""
UNKNOWN_OUTPUT = 128.0
"""Tokens of an answer, as long as next to none has ended."""
FEW = 8


@dataclass(slots=True)
class Counters:
    """What has happened since the start.

    Attributes:
        arrived, finished: sequences that were accepted, and those of them that ended.
        finished_seconds: how long the ended ones had been running, in sum.
        prompt_tokens, cached_tokens: prompt tokens of admitted requests, and how many of them the cache held.
        output_tokens: of the ended sequences.
        preemptions: of sequences.
        drafts, proposed: times that tokens were proposed for a sequence and verified, and how many tokens.
        accepted: how many of them were right, by their place among those proposed at once.
        by_origin: how many were proposed and how many right, by where they came from.
        step_seconds, predicted_seconds: what steps took, and what the cost model had said; of those since it is ready.
    """

    arrived: int = 0
    finished: int = 0
    finished_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    proposed: int = 0
    accepted: list[int] = field(default_factory=list)
    by_origin: dict[Origin, tuple[int, int]] = field(default_factory=dict)
    step_seconds: float = 0.0
    predicted_seconds: float = 0.0
    _lately: float = 0.0  # ended sequences, the earlier the less
    _tokens_lately: float = 0.0

    def stepped(self, seconds: float, predicted: float) -> None:
        """Count a step that the cost model had predicted."""
        self.step_seconds += seconds
        self.predicted_seconds += predicted

    def verified(self, right: int, proposed: int, origin: Origin) -> None:
        """Count proposed tokens of a sequence, the first `right` of which were the model's own."""
        before = self.by_origin.get(origin, (0, 0))
        self.by_origin[origin] = before[0] + proposed, before[1] + right
        self.drafts += 1
        self.proposed += proposed
        self.accepted += [0] * (right - len(self.accepted))
        for place in range(right):
            self.accepted[place] += 1

    def copy(self) -> Counters:
        """As they are now."""
        return replace(self, accepted=list(self.accepted), by_origin=dict(self.by_origin))

    def ended(self, tokens: int, seconds: float, *, generates: bool = True) -> None:
        """Count a sequence that has ended.

        Args:
            tokens: that it got; one without any says nothing of how long answers are.
            seconds: that it ran.
            generates: whether it was to get any; one that wants a vector holds its place for no token.
        """
        self.finished += 1
        self.finished_seconds += seconds
        if tokens or not generates:
            self.output_tokens += tokens
            self._lately += 1 - self._lately / REMEMBERED
            self._tokens_lately += tokens - self._tokens_lately / REMEMBERED

    @property
    def mean_output(self) -> float:
        """Tokens of an answer, of late; of the first few ones only in part, for they may be a start-up's own test."""
        missing = max(0.0, FEW - self._lately)
        return (self._tokens_lately + missing * UNKNOWN_OUTPUT) / (self._lately + missing)


def shard_state(
    config: EngineConfig,
    pool: BlockPool,
    running: Items[Sequence],
    waiting: WaitingSequences,
    counters: Counters,
    *,
    chunk: int,
    held: int,
    cost: Cost,
) -> ShardState:
    """How busy a shard is with what is not below all others.

    Args:
        running: a copy of those that run; the engine's thread may go on meanwhile.
        chunk: tokens that prompts may share in the next step.
        held: blocks that are as good as free.
        cost: the published cost model.
    """
    decoding = context = 0
    tokens, positions = waiting.tokens, waiting.attended
    for seq in running:
        if seq.is_decoding:
            decoding += 1
            context += seq.num_known
        else:
            tokens += seq.remaining
            positions += attended(seq.num_computed, seq.remaining)
    return ShardState(
        decoding=decoding,
        context=context,
        prefilling=len(running) - decoding,
        queued=waiting.above,
        backlog_tokens=tokens,
        backlog_attended=positions,
        chunk=chunk,
        max_num_seqs=config.max_num_seqs,
        blocks=pool.num_blocks,
        blocks_free=min(pool.num_free + held, pool.num_blocks),
        block_size=pool.block_size,
        mean_output=counters.mean_output,
        cost=cost,
        groups=pool.groups if pool.groups.windowed else None,
    )


def num_filled_slots(running: Items[Sequence], pool: BlockPool) -> int:
    """KV slots in owned blocks that hold a token; blocks that several sequences share count once."""
    size, empty = pool.block_size, dict[int, int]()
    for seq in running:
        # All blocks before the last one are full. Sequences that have just been forked share that one.
        for table in seq.table.tables:
            blocks, computed = table[:], seq.num_computed  # the engine's thread may shrink the table meanwhile
            capacity = size * len(blocks)
            if capacity > computed:
                empty[blocks[computed // size]] = capacity - computed
    return pool.num_owned * size - sum(empty.values())
