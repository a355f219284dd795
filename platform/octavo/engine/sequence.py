"""A request inside the engine: its sequences, and what each has known, computed and holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from octavo.block_hash import extend_chain
from octavo.engine.token_counts import TokenCounts
from octavo.kvcache.block_table import BlockTable
from octavo.request import Request, TokenLogprobs
from octavo.step import Float32, Int64

_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads the seeds of a request's sequences over 64 bits
_LEAST = 2.0**-126
"""The smallest float32 that nothing rounds to 0: with a temperature or repetition penalty of 0, 0/0 and -inf * 0 would
be no numbers. What is below draws alike."""


LATE = 2**20
"""From here on the last part of `Sequence.order` counts late sequences, below it is the index in the request."""


@dataclass(slots=True, eq=False)
class Group:
    """A request in the engine and the sequences it became.

    Attributes:
        arrival: (priority, number of arrival): the order in which requests run.
        max_tokens: the request's limit, or what the context leaves.
        sequences: living sequences; one until the prompt is computed.
        num_made: sequences that came to be, of `num_sequences`.
        root: first parent of the block hashes: model and cache namespace.
        forked: whether the prompt has been shared out.
        prompt_logprobs: one entry per prompt token after the first, filled while the prompt is computed.
        announced: whether the first update has been sent (it carries the prompt's numbers).
        columns: temperature, top_k, top_p, min_p and number of logprobs (-1: none), as a step's rows need them.
        penalties: presence, frequency and repetition, where one of them is not neutral.
        counts: what these look at before anything is generated.
        bias: token ids and what is added to their logits.
        banned: token ids that must not be drawn before `min_tokens`, sorted.
        has_extras: whether rows need penalties, biases or bans looked at.
    """

    request: Request
    arrival: tuple[int, int]
    arrival_time: float
    max_tokens: int
    end_token_ids: frozenset[int]
    stop_token_ids: frozenset[int]
    root: bytes
    sequences: list[Sequence] = field(default_factory=list)
    num_made: int = 1
    forked: bool = False
    num_cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    announced: bool = False
    columns: tuple[float, int, float, float, int] = field(init=False)
    penalties: tuple[float, float, float] | None = None
    counts: TokenCounts | None = None
    bias: tuple[Int64, Float32] | None = None
    banned: Int64 | None = None
    has_extras: bool = field(init=False)

    def __post_init__(self) -> None:
        params = self.request.params
        # best_of needs the sampled tokens' log probabilities to choose by
        without = 0 if params.num_sequences > params.n else -1
        logprobs = without if params.logprobs is None else params.logprobs
        top_k = min(max(params.top_k, 0), 2**31 - 1)
        temperature = max(params.temperature, _LEAST) if params.temperature else 0.0
        self.columns = (temperature, top_k, params.top_p, params.min_p, logprobs)
        self._prepare_extras()

    def _prepare_extras(self) -> None:
        """What every row of the request needs, laid out once: `sorted` of 40,000 stop tokens took 17 ms a step."""
        params = self.request.params
        if params.has_penalties:
            repetition = max(params.repetition_penalty, _LEAST)
            self.penalties = params.presence_penalty, params.frequency_penalty, repetition
            self.counts = TokenCounts(self.request.prompt_token_ids if params.repetition_penalty != 1 else ())
        if params.logit_bias:
            self.bias = np.array([*params.logit_bias], np.int64), np.array([*params.logit_bias.values()], np.float32)
        if params.min_tokens and (banned := self.end_token_ids | self.stop_token_ids):
            self.banned = np.array(sorted(banned), np.int64)
        self.has_extras = any(extra is not None for extra in (self.penalties, self.bias, self.banned))

    def seed_of(self, index: int) -> int:
        """64-bit seed of one sequence's random numbers."""
        return (self.request.seed + index * _MIX) % 2**64


@dataclass(slots=True, eq=False)
class Sequence:
    """One line of generation.

        0 ........ num_cached ........ num_computed ........ num_known
        [ found in the cache ][ K and V computed ][ known, to be computed ]

    A prompt chunk, a resumed sequence and a single decode step differ only in how far apart the last two are. While
    steps are under way, what they compute counts as computed and the tokens they draw as known, though not by value.

    Attributes:
        order: (priority, number of arrival, number among the late sequences of requests): lower runs first.
        counts: of its output, where penalties look at it.
        expected_cached: tokens that the cache is believed to hold while the sequence waits.
        width: rows that its next token is drawn in: its own, and those of sequences that start with it.
        num_pending: tokens that are being drawn.
        row: of the step begun last, where the latest of those is drawn.
        ended: whether its last update has been made.
    """

    group: Group
    index: int
    token_ids: list[int]
    table: BlockTable
    num_prompt: int
    order: tuple[int, int, int]
    counts: TokenCounts | None = None
    expected_cached: int = 0
    width: int = 1
    num_computed: int = 0
    cumulative_logprob: float = 0.0
    since: float = 0.0  # when it first ran (monotonic seconds)
    chain: list[bytes] = field(default_factory=list)
    num_pending: int = 0
    row: int = -1
    ended: bool = False

    @property
    def num_known(self) -> int:
        return len(self.token_ids) + self.num_pending

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.token_ids) + self.num_pending - self.num_computed

    @property
    def is_late(self) -> bool:
        """Whether it is one of a request's n that had to wait for a place when the prompt was shared out."""
        return self.order[2] >= LATE

    @property
    def is_ending(self) -> bool:
        """Whether the last token it may have is being drawn."""
        return self.num_pending > 0 and self.num_known - self.num_prompt >= self.group.max_tokens

    def hashes(self, block_size: int) -> list[bytes]:
        """The hash chain over all full blocks of known tokens."""
        extend_chain(self.chain, self.group.root, self.token_ids, block_size)
        return self.chain

    def fork(self, index: int) -> Sequence:
        """A sibling that shares everything computed so far."""
        return Sequence(
            group=self.group,
            index=index,
            token_ids=list(self.token_ids),
            table=self.table.fork(),
            num_prompt=self.num_prompt,
            order=(*self.order[:2], index),
            counts=self.counts and self.counts.copy(),
            num_computed=self.num_computed,
            since=self.since,
            chain=list(self.chain),
        )
