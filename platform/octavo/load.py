"""How busy a shard is: one record, and the predictions that everything else reads from it.

The router predicts where a request gets its first token soonest, admission how long a refused request should wait
(`Retry-After`), the autoscaler how long the queue is; the metrics show all of it. They use the same `ShardState`, with

    a, b, c, d, e     seconds per step, token, sequence, attended and context position (`octavo.cost_model.Cost`)

    step              a + (b + c) * decoding + (d + e) * context      a step of the decoding sequences alone
    full step         the same once all who are here decode, or as many of them as have places
    backlog seconds   steps * step + c * max(steps, prompts) + b * tokens + d * attended
                                                                      to compute the backlog in tokens / chunk steps
    queue seconds     the same, and half a step where sequences decode: the rest of the one under way
    wait seconds      full step * (steps until enough sequences have ended to make room), less those of the backlog
    start seconds     wait seconds + queue seconds                    until a request that comes now begins
    starts per second full / (mean_output * full step + full * (prompt + c) + a * steps beyond mean_output)
                                                                      that can begin in the long run

Prompts ride in the steps of those that decode. Where few or none do, as at an encoder, whose texts get no token, their
steps are theirs alone: a fit to steps that are all full cannot tell what a step costs from what its tokens do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

from octavo.cost_model import Cost
from octavo.layer_groups import LayerGroups

Phase = Literal["awake", "dozing", "asleep", "waking", "switching"]
"""What a shard does with its model's weights. Dozing: it takes requests yet, but nobody should accept any; switching:
others come in their place. While it is asleep, waking or switching it takes none."""

MOST_TOLD = 1024
"""Adapters that a shard tells of: 32 KiB of digests."""


class LoadedAdapters(NamedTuple):
    """Adapters that a shard need not read before it computes with them.

    Attributes:
        digests: of those that came last, at most `MOST_TOLD`.
        seconds: until a request can begin whose adapter it has to read, as measured of late.
    """

    digests: tuple[str, ...] = ()
    seconds: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """A shard's work and room now, as it says itself many times a second.

    A sequence decodes, or computes its prompt, or queues for a place or blocks. The backlog is what the last two kinds
    have to compute before their first token: tokens that are known, not computed and not expected in the cache.

    Attributes:
        decoding: sequences that get a token in every step.
        context: positions that these attend to in a step, in sum.
        prefilling: sequences that run and compute a prompt.
        queued: sequences that wait.
        backlog_tokens: of those two kinds, in sum.
        backlog_attended: positions that these tokens attend to (`octavo.cost_model.attended`).
        chunk: tokens of prompts that one step computes now, at most.
        max_num_seqs: sequences that can run at once.
        blocks, blocks_free: KV blocks, and those that no sequence holds.
        block_size: tokens per block.
        groups: of layers, where some have a window; None: every block has all layers.
        mean_output: tokens of an answer, averaged over those that ended of late.
        cost: the shard's own cost model; zeros until it has measured enough steps.
        fetched_block: seconds in which a KV block comes here from another shard; 0.0: none do.
        fetched_start: that they take together beside these, however many come.
    """

    decoding: int
    context: int
    prefilling: int
    queued: int
    backlog_tokens: int
    backlog_attended: int
    chunk: int
    max_num_seqs: int
    blocks: int
    blocks_free: int
    block_size: int
    mean_output: float
    cost: Cost
    fetched_block: float = 0.0
    fetched_start: float = 0.0
    groups: LayerGroups | None = None

    @property
    def num_running(self) -> int:
        """Sequences that have a place."""
        return self.decoding + self.prefilling

    @property
    def num_sequences(self) -> int:
        """Sequences that run or wait."""
        return self.decoding + self.prefilling + self.queued

    # ---- predictions ------------------------------------------------------------------------------------------

    @property
    def step_seconds(self) -> float:
        """A step of the decoding sequences alone: what every step costs anyway."""
        cost = self.cost
        return cost.step + (cost.token + cost.sequence) * self.decoding + (cost.attended + cost.context) * self.context

    def prefill_seconds(self, tokens: float, attended: float) -> float:
        """What `tokens` of one sequence add to the steps that they are computed in."""
        return self.cost.token * tokens + self.cost.attended * attended

    @property
    def backlog_seconds(self) -> float:
        """From the next step on, until the backlog is computed."""
        return self._backlog_seconds(0.0)

    @property
    def queue_seconds(self) -> float:
        """From now on, until the backlog is computed; on average half of the step under way is over."""
        return self._backlog_seconds(0.5 if self.decoding else 0.0)

    def _backlog_seconds(self, more_steps: float) -> float:
        steps = self.backlog_tokens / max(self.chunk, 1) + more_steps
        prompts = self.prefill_seconds(self.backlog_tokens, self.backlog_attended)
        return steps * self.step_seconds + self.cost.sequence * max(steps, self.prefilling + self.queued) + prompts

    def wait_seconds(self, tokens: int, sequences: int) -> float:
        """Beyond the backlog's steps, until sequences have left the places and blocks that are needed.

        They must do for what waits and for one more request. Once all places are taken, one of them is left every
        `mean_output / full` steps, those in which the backlog is computed included.

        Args:
            tokens: of the request's prompt.
            sequences: that it becomes.
        """
        here = self.num_sequences
        places = here + sequences - self.max_num_seqs
        blocks = (self.backlog_tokens + tokens) / self.block_size - self.blocks_free
        if not here or (places <= 0 and blocks <= 0):
            return 0.0
        running = max(1, self.num_running)
        held = max(1.0, (self.blocks - self.blocks_free) / running)
        steps = max(places / self.full, blocks / held / running) * self.mean_output
        return max(0.0, steps * self.full_step_seconds - self.backlog_tokens / max(self.chunk, 1) * self.step_seconds)

    @property
    def full(self) -> int:
        """Sequences that decode once the backlog is computed; at least 1."""
        return max(1, min(self.num_sequences, self.max_num_seqs))

    @property
    def full_step_seconds(self) -> float:
        cost, each = self.cost, self.context / self.decoding if self.decoding else 0.0
        return cost.step + (cost.token + cost.sequence + (cost.attended + cost.context) * each) * self.full

    def starts_per_second(self, tokens: float, places: int) -> float:
        """Sequences that can begin in the long run, while none of the places stays free.

        Args:
            tokens: of a prompt, on average.
            places: sequences that run at once, at least 1.
        """
        cost, context = self.cost, tokens + self.mean_output / 2
        step = cost.step + (cost.token + cost.sequence + (cost.attended + cost.context) * context) * places
        own_steps = max(0.0, places * tokens / max(self.chunk, 1) - self.mean_output)
        prompt = self.prefill_seconds(tokens, tokens * tokens / 2) + cost.sequence
        seconds = self.mean_output * step + places * prompt + own_steps * cost.step
        return places / seconds if seconds > 0 else math.inf

    def start_seconds(self, tokens: int = 0, sequences: int = 1) -> float:
        """Until a request that comes now begins to be computed; arguments as of `wait_seconds`."""
        return self.wait_seconds(tokens, sequences) + self.queue_seconds

    def fetch_seconds(self, tokens: int) -> float:
        """Until blocks with so many tokens have come from another shard."""
        return self.fetched_start + tokens / self.block_size * self.fetched_block

    # ---- corrections between two reports ----------------------------------------------------------------------

    def with_request(self, sequences: int, tokens: int, attended: int) -> Self:
        """The state with more in the queue.

        Args:
            tokens: to be computed.
            attended: positions that these attend to.
        """
        return replace(
            self,
            queued=self.queued + sequences,
            backlog_tokens=self.backlog_tokens + tokens,
            backlog_attended=self.backlog_attended + attended,
        )

    def without_request(self, sequences: int, tokens: int, attended: int) -> Self:
        """The state less a request that it counts, wherever that was: arguments as of `with_request`."""
        if self.prefilling + self.queued < sequences:
            return replace(self, decoding=max(0, self.decoding - sequences))
        from_queue = min(self.queued, sequences)
        return replace(
            self,
            queued=self.queued - from_queue,
            prefilling=self.prefilling - (sequences - from_queue),
            backlog_tokens=max(0, self.backlog_tokens - tokens),
            backlog_attended=max(0, self.backlog_attended - attended),
        )
