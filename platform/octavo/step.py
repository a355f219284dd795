"""The two records that cross between scheduling and execution, once per step.

They are plain (numpy arrays and lists), picklable and self-contained: a tensor-parallel rank in another process needs
nothing else. Flat token order is sequence after sequence:

    row:           0                 1     2
    token_ids:   [ a a a a a a a a | b   | c c c c ]        T = 13
    query_start: [ 0                 8     9         13 ]   S + 1 = 4
    positions of row s: context_lens[s] - query_len[s] ... context_lens[s] - 1
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.pooling import Method, Task

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Uint32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]


class GaveWay(Exception):
    """A step ended before its time, as `StepBatch.gives_way` allows: of what it did only the block copies count."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """What the penalties of one row look at, counted already: D tokens, each once.

    Attributes:
        presence, frequency, repetition: as in `octavo.request.SamplingParams`.
        tokens: [D] those of the output, and with a repetition penalty those of the prompt.
        counts: [D] how often each occurs in the output.
    """

    presence: float
    frequency: float
    repetition: float
    tokens: Int64
    counts: Float32


@dataclass(slots=True)
class SamplingRows:
    """How to sample each of R rows; everything is per row, so rows never influence each other.

    Sparse features (penalties, bias, banned tokens, logprobs) list only the rows that use them.
    """

    # [R] which flat token's logits to sample from. n sequences of one prompt share one; a sequence with k proposed
    # tokens has k + 1 rows, one for its newest token and one for each of those
    token_index: Int32
    temperature: Float32  # [R] 0 is greedy
    top_k: Int32  # [R] 0 keeps all
    top_p: Float32  # [R] 1 keeps all
    min_p: Float32  # [R] 0 keeps all
    seed: npt.NDArray[np.uint64]  # [R] per sequence, already mixed with its index
    position: Int64  # [R] index in the sequence of the token to be drawn: the counter
    num_logprobs: Int32  # [R] -1: none; k: the sampled token and k alternatives
    penalties: dict[int, Penalties] = field(default_factory=dict)  # by row
    logit_bias: dict[int, tuple[Int64, Float32]] = field(default_factory=dict)  # row -> token ids, and what they get
    banned: dict[int, Int64] = field(default_factory=dict)  # row -> token ids that must not be drawn (min_tokens)
    named: dict[int, Int64] = field(default_factory=dict)  # row -> token ids whose log probabilities it asks for, too
    # [M, ceil(V / 32)] the tokens that each of M rows may draw, a bit each, the lowest bit of a word first; None: all
    masks: Uint32 | None = None
    masked: Int32 | None = None  # [M] whose masks they are, rising
    beams: dict[int, int] = field(default_factory=dict)  # row -> how many `Candidates` it wants; what it draws is void

    @property
    def are_treated(self) -> bool:
        """Whether anything changes logits before a token is drawn from them."""
        return bool(self.logit_bias or self.banned or self.penalties) or self.masks is not None


@dataclass(slots=True)
class SoFar:
    """Of a prompt that takes several steps: its first state, or the sum of its states. It is the executor's own."""

    value: npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class PooledRow:
    """One sequence of a step whose prompt wants a vector.

    Attributes:
        row: of the sequence in the step.
        start: position of the first of its tokens in this step; 0 begins it, also where it has been begun before.
        is_last: whether the step computes the last token of the prompt, and so the vector.
        second: as in `octavo.pooling.Pooling`: a position in the prompt.
        so_far: where an executor that takes prompts in chunks keeps what it needs of the earlier ones.
    """

    row: int
    start: int
    is_last: bool
    task: Task
    method: Method
    second: int | None = None
    so_far: SoFar = field(default_factory=SoFar)


@dataclass(slots=True)
class StateRows:
    """What a step does with the states of recurrent layers; none of those that it reads is written in it, but by the
    sequence that reads it."""

    source: Int32  # [S] the state that each sequence goes on from; -1 begins
    saved: Int32  # [K] flat tokens, rising, each sequence's last one among them: what they leave ...
    states: Int32  # [K] ... goes here


@dataclass(slots=True)
class StepBatch:
    """One step: S sequences with T tokens in all, and R rows to sample; R is 0 where all T belong to unfinished prompts
    or to requests that sample nothing."""

    token_ids: Int32  # [T] tokens to compute
    query_start: Int32  # [S + 1] where each sequence's tokens begin in token_ids
    context_lens: Int32  # [S] tokens of the sequence whose K and V are in the cache after this step
    # [S, B] block ids of each sequence; [G, S, B] where layers are in G groups (`octavo.layer_groups`). Entries
    # past its last block, and those that no window reaches any more, are unused
    block_tables: Int32
    block_copies: list[tuple[int, int]]  # (source, target) block copies to make before anything is written
    sampling: SamplingRows
    # (flat token index, token id that follows it, alternatives) for each prompt token whose logprob was asked for
    prompt_logprobs: list[tuple[int, int, int]] = field(default_factory=list)
    # [T] for each token the row of the previous, still running step that samples it, or -1 where token_ids holds it;
    # None: token_ids holds all. Only a sequence's last token can be missing. `sampling.penalties` do not count it yet.
    sources: Int32 | None = None
    pooled: list[PooledRow] = field(default_factory=list)  # the sequences that want a vector
    states: StateRows | None = None  # of a model with recurrent layers; None: all begin, and nothing of them is kept
    adapters: list[str] | None = None  # [S] digests of their adapters, "" for none; None: none has one
    # [1] not 0 once the step may end before its time (`GaveWay`), which another thread says; None: it never may
    gives_way: Int32 | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_seqs(self) -> int:
        return len(self.context_lens)


@dataclass(slots=True)
class LogprobRow:
    """Log probabilities of one position: the token itself first, then the alternatives in falling order, then those
    that were asked for by name."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of token_ids[0]; 1 is the most likely
    named: int = 0  # how many were asked for by name


@dataclass(slots=True)
class Candidates:
    """The tokens that may follow a beam, the best first.

    A score is a log probability after the request's treatment, which here changes log probabilities, not logits, and
    after which nothing is normalised again: as in transformers' beam search. Those of -inf are left out.
    """

    token_ids: Int64  # [K]
    scores: Float32  # [K], falling
    logprobs: Float32  # [K] the model's own
    ranks: Int64  # [K] by these; 1 is the most likely


@dataclass(slots=True)
class StepResult:
    """What a step produced."""

    token_ids: Int64  # [R]; -1 marks a row whose logits were not finite: its request fails alone
    logprobs: dict[int, LogprobRow]  # row -> log probabilities, for rows that asked
    prompt_logprobs: list[LogprobRow]  # one per StepBatch.prompt_logprobs
    seconds: float  # measured duration, for the cost model
    # row of the sequence -> vector after the final norm and the checkpoint's dense layers, neither cut nor normalised,
    # or logits of the classes; one for each `PooledRow.is_last`. One that is not finite fails its request alone
    pooled: dict[int, Float32] = field(default_factory=dict)
    candidates: dict[int, Candidates] = field(default_factory=dict)  # row -> what may follow, of `SamplingRows.beams`
