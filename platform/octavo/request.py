"""The shared nouns: what is asked for (`SamplingParams`, `Request`) and what comes back.

These records cross every boundary of the system (caller to engine, gateway to shard), so they are plain, picklable
and know neither tensors nor text processing.
"""

from __future__ import annotations

import math
import secrets
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from octavo.beams import BeamSearch
from octavo.constraint import Grammar, StructuredOutputs, Thinking
from octavo.errors import BadRequest
from octavo.pooling import Pooling

FinishReason = Literal["stop", "length", "abort", "error", "refused", "late"]

MAX_LOGPROBS = 20
"""Most alternatives per token that a request may ask for (OpenAI's own limit)."""

MAX_N = 128
"""Most sequences of one prompt."""

MAX_STOP = 16
"""Most stop strings of a request; OpenAI takes four."""

MAX_STOP_LENGTH = 1024
"""Characters of a stop string: text that could begin one is held back."""

MAX_STOP_TOKEN_IDS = 1024
"""Most token ids that end a sequence besides the model's own."""

MAX_LOGPROB_TOKEN_IDS = 1024
"""Most token ids whose log probabilities a request may ask for by name."""

MAX_LOGIT_BIAS = 1024
"""Most tokens with a bias; OpenAI takes 300."""

MAX_ALLOWED = 2**16
"""Most entries of `allowed_token_ids`."""

MAX_BAD, MAX_BAD_LENGTH = 1024, 64
"""Most bad words; tokens of the sequences that they become, of which a word has up to two."""

MAX_PREDICTED = 2**14
"""Most tokens of what an output is expected to hold; what a prediction has beyond them is not looked at."""

MAX_WEIGHT = 1e6
"""Of a tenant: how many times as much as one with the default of 1 it may get."""

MAX_DEADLINE = 86400.0
"""Seconds to a first token; who can wait for more than a day has no deadline."""

MAX_TOKEN_ID = 2**31 - 1
"""No vocabulary is larger."""

SAMPLE = {"temperature": (0, 1), "top_k": (0, -1), "top_p": (1,), "min_p": (0,)}
"""How a token is drawn, and the values with which beam search, which draws none, may be asked for."""

BELOW_ALL = 2**63 - 1
"""The priority of requests that nobody waits for (batches): clients' priorities end before it. They run in time that is
left over, and shards do not count them in their load (`octavo.engine.below`)."""

INT64 = -(2**63), 2**63 - 1
"""Range of every integer that has no narrower one: what fits a tensor and the wire."""


def _number(
    value: object, name: str, low: float, high: float, *, integer: bool = False, open_low: bool = False
) -> None:
    if (type(value) is int or (type(value) is float and not integer)) and (low < value <= high):
        return  # as nearly always, and a request has ten of them
    kind = "an integer" if integer else "a number"
    right = isinstance(value, int) if integer else isinstance(value, (int, float))
    if isinstance(value, int) and not -(2**64) < value < 2**64:  # Python refuses to print one of 4,300 digits
        raise BadRequest(f"{name} must be {kind} of at most 64 bits", name)
    if isinstance(value, bool) or not right or (isinstance(value, float) and not math.isfinite(value)):
        raise BadRequest(f"{name} must be {kind}, got {value!r:.80}", name)
    assert isinstance(value, (int, float))
    if not (low < value if open_low else low <= value) or value > high:
        span = f"{'more than' if open_low else 'at least'} {low:g}" + (
            "" if high == math.inf else f" and at most {high:g}"
        )
        raise BadRequest(f"{name} must be {span}, got {value}", name)


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """How to sample one request. Names and meanings are those of OpenAI's API and of vLLM.

    Attributes:
        n: sequences to return.
        best_of: sequences to generate; the `n` with the highest mean log probability are returned.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least this, in [0, 1]; 0 keeps
            one, which is greedy.
        min_p: drop tokens less likely than this times the most likely one, in [0, 1].
        presence_penalty, frequency_penalty: subtracted from the logit of a token that was generated (once; per
            occurrence), in [-2, 2].
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output
            (Keskar et al. 2019, CTRL), more than 0.
        logit_bias: token id -> added to its logit, in [-100, 100].
        seed: of the counter-based random numbers; the same seed gives the same tokens in any batch. Drawn at random
            when None (or -1, vLLM's way to say it), so that a request moved elsewhere continues alike.
        stop: up to MAX_STOP strings that end the text (checked by the text layer, not by the engine).
        stop_token_ids: token ids that end the sequence, besides the model's own end tokens.
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: go on after the model's end tokens.
        min_tokens: no end token and no stop token before this many tokens.
        max_tokens: most tokens to generate; None means as many as the context holds. 0 computes the prompt and samples
            nothing: its log probabilities, or a warm prefix cache, are all that is wanted.
        logprobs: alternatives per generated token, besides the sampled token itself; None means no log probabilities.
        logprob_token_ids: up to MAX_LOGPROB_TOKEN_IDS token ids whose log probabilities are told for each generated
            token, beside the sampled token's own and the alternatives that `logprobs` asks for.
        prompt_logprobs: the same as `logprobs` for prompt tokens; turns prefix-cache reads off for the request.
        skip_special_tokens: leave special tokens out of the text.
        allowed_token_ids: no other token is drawn.
        bad_words: texts that do not appear in the output.
        structured_outputs: what the text must be. The text layer makes `grammar` of it.
        grammar: what the tokens must match (see `octavo.constraint`).
        thinking: a budget for what comes before the answer.
        bad_token_ids: sequences of tokens of which none is completed; the text layer makes them of `bad_words`.
        beams: search for the likeliest texts in place of sampling: the `n` best come, the best first, when all is done.

    Raises:
        BadRequest: on construction, naming the parameter that is wrong.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = field(default_factory=list)
    structured_outputs: StructuredOutputs | None = None
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    bad_token_ids: list[list[int]] = field(default_factory=list)
    beams: BeamSearch | None = None

    def __post_init__(self) -> None:
        _number(self.n, "n", 1, MAX_N, integer=True)
        if self.best_of is not None:
            _number(self.best_of, "best_of", self.n, MAX_N, integer=True)
        _number(self.temperature, "temperature", 0, 100)
        _number(self.top_k, "top_k", -1, INT64[1], integer=True)
        _number(self.top_p, "top_p", 0, 1)
        if self.top_p == 0:
            self.temperature, self.top_p = 0.0, 1.0
        _number(self.min_p, "min_p", 0, 1)
        _number(self.presence_penalty, "presence_penalty", -2, 2)
        _number(self.frequency_penalty, "frequency_penalty", -2, 2)
        _number(self.repetition_penalty, "repetition_penalty", 0, 100, open_low=True)
        _number(self.min_tokens, "min_tokens", 0, INT64[1], integer=True)
        if self.max_tokens is not None:
            _number(self.max_tokens, "max_tokens", 0, INT64[1], integer=True)
            if self.min_tokens > self.max_tokens:
                raise BadRequest(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens")
        if self.seed is not None:
            _number(self.seed, "seed", INT64[0], 2**64 - 1, integer=True)
            self.seed = None if self.seed == -1 else self.seed
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _number(getattr(self, name), name, 0, MAX_LOGPROBS, integer=True)
        if self.logprob_token_ids is not None:
            self._check_logprob_token_ids(self.logprob_token_ids)
        if self.logit_bias is not None:
            self._check_logit_bias(self.logit_bias)
        if self.stop is not None or self.stop_token_ids != []:
            self._check_stop()
        if self.allowed_token_ids is not None or self.bad_words or self.bad_token_ids:
            self._check_lists()
        if self.beams is not None:
            self._check_beams(self.beams)

    def _check_beams(self, beams: BeamSearch) -> None:
        if self.n > beams.width:
            raise BadRequest(f"n is {self.n}, and {beams.width} beams end in so many texts at most: lower n", "n")
        for name, values in {**SAMPLE, "best_of": (None,), "thinking": (None,)}.items():
            if (value := getattr(self, name)) not in values:
                raise BadRequest(
                    f"beam search samples nothing: leave {name} out, or at {values[0]} (it is {value!r:.80})", name
                )
        if self.max_tokens == 0:
            raise BadRequest("max_tokens is 0, which leaves nothing to search: raise it", "max_tokens")
        self.temperature = 0.0

    def _check_lists(self) -> None:
        allowed, words, bad = self.allowed_token_ids, self.bad_words, self.bad_token_ids
        if allowed is not None and not (isinstance(allowed, list) and 0 < len(allowed) <= MAX_ALLOWED):
            raise BadRequest(f"allowed_token_ids must be 1 to {MAX_ALLOWED} token ids", "allowed_token_ids")
        for token in allowed or ():
            _number(token, "allowed_token_ids", 0, MAX_TOKEN_ID, integer=True)
        right = isinstance(words, list) and len(words) <= MAX_BAD
        if not right or not all(isinstance(word, str) and 0 < len(word) <= MAX_STOP_LENGTH for word in words):
            raise BadRequest(
                f"bad_words must be at most {MAX_BAD} texts of 1 to {MAX_STOP_LENGTH} characters", "bad_words"
            )
        if len(bad) > 2 * MAX_BAD or not all(0 < len(ids) <= MAX_BAD_LENGTH for ids in bad):
            raise BadRequest(
                f"bad_words become {len(bad)} sequences of up to {max(map(len, bad))} tokens; at most {2 * MAX_BAD} of "
                f"1 to {MAX_BAD_LENGTH} are taken",
                "bad_words",
            )

    def _check_logprob_token_ids(self, ids: list[int]) -> None:
        name = "logprob_token_ids"
        if not isinstance(ids, list) or len(ids) > MAX_LOGPROB_TOKEN_IDS:
            raise BadRequest(f"{name} must be at most {MAX_LOGPROB_TOKEN_IDS} token ids", name)
        for token in ids:
            _number(token, name, 0, MAX_TOKEN_ID, integer=True)
        if any(each is not None for each in (self.structured_outputs, self.grammar, self.thinking)):
            raise BadRequest(f"{name} are not told for tokens that a grammar or a budget decides: leave one out", name)

    def _check_logit_bias(self, bias: dict[int, float]) -> None:
        if not isinstance(bias, dict) or len(bias) > MAX_LOGIT_BIAS:
            raise BadRequest(f"logit_bias must map at most {MAX_LOGIT_BIAS} token ids to numbers", "logit_bias")
        for token, value in bias.items():
            _number(token, "logit_bias", 0, MAX_TOKEN_ID, integer=True)
            _number(value, "logit_bias", -100, 100)

    def _check_stop(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        strings = [] if self.stop is None else self.stop
        if (
            not isinstance(strings, list)
            or len(strings) > MAX_STOP
            or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LENGTH for s in strings)
        ):
            raise BadRequest(f"stop must be at most {MAX_STOP} strings of 1 to {MAX_STOP_LENGTH} characters", "stop")
        if not isinstance(self.stop_token_ids, list) or len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise BadRequest(f"stop_token_ids must be at most {MAX_STOP_TOKEN_IDS} token ids", "stop_token_ids")
        for token in self.stop_token_ids:
            _number(token, "stop_token_ids", 0, MAX_TOKEN_ID, integer=True)

    @property
    def num_logprobs(self) -> int | None:
        """Log probabilities of each generated token besides its own; None means none at all."""
        if self.logprobs is None and self.logprob_token_ids is None:
            return None
        return (self.logprobs or 0) + len(self.logprob_token_ids or ())

    @property
    def num_sequences(self) -> int:
        """Sequences to generate (`best_of`, or `n`)."""
        return self.best_of or self.n

    @property
    def num_places(self) -> int:
        """Sequences that run at once."""
        return self.num_sequences if self.beams is None else self.beams.width

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty differs from its neutral value."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, empty when unset."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


@dataclass(frozen=True, slots=True)
class Placement:
    """What a router decided about a request.

    Attributes:
        ticket: what the router calls the request; the shard's reports say it back once they count the request.
        shard: its first choice.
        reason: see `octavo.routing.policy.Choice`.
        cached_tokens: prompt tokens that it expects to be cached there.
        first_token: predicted seconds to the first token.
        peer: another shard, from which the first one may fetch blocks; "" where there is nothing to fetch.
        peer_blocks: how many of the prompt's first blocks are there.
        prefill: the shard that computes the prompt first; "" where that is the first choice itself.
    """

    ticket: str
    shard: str
    reason: str
    cached_tokens: int
    first_token: float
    peer: str = ""
    peer_blocks: int = 0
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as a request names it.

    Attributes:
        name: what callers call it.
        digest: hash of its contents. Block hashes start from it, so other contents under one name share no block.
        path: of its folder or file as a shard sees it; what lies there must still have that digest.
        invocation: token ids that it begins at (aLoRA); empty: it is there from the first token on.
    """

    name: str
    digest: str
    path: str
    invocation: tuple[int, ...] = ()

    def begins_at(self, prompt: Sequence[int]) -> int | None:
        """Position of the first token of a prompt that it changes; None where nothing invokes it.

        As PEFT and llama.cpp have it: the first token of the last place where the prompt invokes it. What is generated
        after a prompt moves nothing.
        """
        if not self.invocation:
            return 0
        tokens, wanted = array("q", prompt), array("q", self.invocation)
        whole, part, width = tokens.tobytes(), wanted.tobytes(), tokens.itemsize
        place = whole.rfind(part)
        while place > 0 and place % width:  # bytes of two tokens
            place = whole.rfind(part, 0, place + len(part) - 1)
        return None if place < 0 or place % width else place // width


@dataclass(slots=True, kw_only=True)
class Request:
    """One prompt on its way to an engine. Plain and picklable: this is what the gateway sends to a shard.

    Attributes:
        request_id: unique among requests in flight.
        prompt_token_ids: at least one token.
        params: how to sample; its `seed` is filled in here when it was None.
        priority: lower runs first (vLLM's meaning); equal priorities run in order of arrival.
        cache_salt: cache namespace; requests share cached blocks only within one salt.
        adapter: which it is computed with; None: the model as it is. Cached blocks are shared within one adapter, and
            those before it begins with the model itself.
        block_hashes: the prompt's chain from `block_hash.hash_chain`, when the sender computed it for routing;
            the engine computes it otherwise.
        session: requests of one session stay together under the routing policy "session".
        placement: where its sender sends it, and what it expects there; None where no router decided.
        emitted: of a request that goes on where another shard left it: for each of its sequences the tokens it has
            generated already, or None if it has ended. They count as its output, but no update repeats them, and
            neither prompt log probabilities nor cumulative sums come again.
        pooling: what it wants in place of tokens: it samples nothing, and of `params` only n = 1 is allowed.
        alone: run it in steps of its own until it has told two tokens, or ended: it is suspected of having stopped the
            engine it ran on. An update without tokens says when that begins, and another when it is over.
        seed: of its random numbers, in [0, 2**64); `params.seed`, or drawn at random.
        asker: who wants it, as far as the sender knows: askers take turns where new grammars are compiled.
        predicted: tokens that its output is expected to hold; they change how fast it comes, and nothing of it.
        tenant: whom its work is charged to under `scheduling_policy: fair`; all those without a name are one tenant.
        weight: of the tenant, more than 0: those who wait share the machine in proportion to their weights.
        deadline: seconds in which its first token must come, counted anew by whoever takes it in (gateway, then
            shard); None: whenever it can. It is dropped if it has not begun by then; once begun it is finished.
        cache_share: part of a shard's blocks; what is cached of its tenant beyond it goes first. None: no limit.
        made_for: name of the weights that its hashes, and what it has emitted, are of; no others may go on with it.
            "": any may.

    Raises:
        BadRequest: on construction, for a weight or a deadline out of bounds.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    cache_salt: str = ""
    adapter: Adapter | None = None
    block_hashes: list[bytes] | None = None
    session: str = ""
    placement: Placement | None = None
    emitted: list[list[int] | None] | None = None
    alone: bool = False
    seed: int = -1
    pooling: Pooling | None = None
    asker: str = ""
    predicted: list[int] | None = None
    tenant: str = ""
    weight: float = 1.0
    deadline: float | None = None
    cache_share: float | None = None
    made_for: str = ""

    @property
    def adapter_digest(self) -> str:
        """Of its adapter; "" without one."""
        return "" if self.adapter is None else self.adapter.digest

    def __post_init__(self) -> None:
        # SamplingParams may be shared by many requests: the drawn seed belongs to the request.
        if self.seed < 0:
            self.seed = secrets.randbits(63) if self.params.seed is None else self.params.seed % 2**64
        _number(self.weight, "weight", 0, MAX_WEIGHT, open_low=True)
        if self.deadline is not None:
            _number(self.deadline, "deadline", 0, MAX_DEADLINE, open_low=True)
        if self.cache_share is not None:
            _number(self.cache_share, "cache_share", 0, 1, open_low=True)


@dataclass(slots=True)
class Logprob:
    """One token's log probability under the model (before temperature, penalties and filters).

    Attributes:
        logprob: natural logarithm.
        rank: 1 for the most likely token; 0 of a token that was asked for by name, whose rank nobody counts.
        decoded_token: the token's text, filled in by the text layer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]
"""Token id -> its log probability: the token itself and the alternatives asked for."""


def token_logprobs(token_ids: Sequence[int], logprobs: Sequence[float], rank: int, named: int = 0) -> TokenLogprobs:
    """vLLM's shape of one token's numbers.

    Args:
        token_ids, logprobs: the token itself, then the alternatives in falling order, which may repeat it, then those
            that were asked for by name, which may repeat both.
        rank: of the token itself.
        named: how many were asked for by name.
    """
    entries = {token_ids[0]: Logprob(logprobs[0], rank)}
    ranked = len(token_ids) - named
    for place, (token, value) in enumerate(zip(token_ids[1:], logprobs[1:], strict=True), 1):
        entries.setdefault(token, Logprob(value, place if place < ranked else 0))
    return entries


@dataclass(slots=True)
class PackedLogprobs:
    """The log probabilities of a prompt in 8 bytes each (little-endian), where the objects that iterating makes of them
    take 150: None for the first prompt token, which nothing predicts, then one entry per prompt token.

    Attributes:
        width: log probabilities of one token: its own and the alternatives.
        token_ids: int32 [tokens, width]; the token itself, then the alternatives in falling order.
        logprobs: float32 [tokens, width].
        ranks: int32 [tokens], of the token itself.
    """

    width: int = 0
    token_ids: bytearray = field(default_factory=bytearray)
    logprobs: bytearray = field(default_factory=bytearray)
    ranks: bytearray = field(default_factory=bytearray)

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float], rank: int) -> None:
        """Add a token: as `token_logprobs`, with as many alternatives as the one before."""
        self.width = len(token_ids)
        self.token_ids += struct.pack(f"<{self.width}i", *token_ids)
        self.logprobs += struct.pack(f"<{self.width}f", *logprobs)
        self.ranks += struct.pack("<i", rank)

    def extend(self, more: PackedLogprobs) -> None:
        """Add the tokens of another part of the prompt."""
        self.width = more.width
        self.token_ids += more.token_ids
        self.logprobs += more.logprobs
        self.ranks += more.ranks

    def parts(self, values: int) -> Iterator[PackedLogprobs]:
        """The same in pieces of at most so many log probabilities, or of one token where it has more."""
        tokens = max(1, values // max(1, self.width))
        row, step = 4 * self.width, 4 * tokens
        for first in range(0, len(self.ranks), step):
            cut = slice(first // 4 * row, (first // 4 + tokens) * row)
            yield PackedLogprobs(self.width, self.token_ids[cut], self.logprobs[cut], self.ranks[first : first + step])

    @property
    def num_values(self) -> int:
        """Log probabilities in all."""
        return len(self.logprobs) // 4

    def __len__(self) -> int:
        return 1 + len(self.ranks) // 4

    def __iter__(self) -> Iterator[TokenLogprobs | None]:
        yield None
        if self.ranks:
            token_ids = struct.iter_unpack(f"<{self.width}i", self.token_ids)
            logprobs = struct.iter_unpack(f"<{self.width}f", self.logprobs)
            for ids, values, (rank,) in zip(token_ids, logprobs, struct.iter_unpack("<i", self.ranks), strict=True):
                yield token_logprobs(ids, values, rank)


@dataclass(slots=True)
class SequenceUpdate:
    """What one step did to one sequence of a request: engine to caller.

    Attributes:
        request_id, index: which sequence (index < `num_sequences`).
        token_ids: tokens generated since the last update of this sequence.
        num_forced: how many of them, the last ones, were known without being sampled: a grammar left no choice.
        num_accepted, num_rejected: tokens of `Request.predicted` that the step verified and kept, and those that it
            computed in vain.
        logprobs: one entry per token of `token_ids`, or None when not asked for.
        cumulative_logprob: sum over all tokens of the sequence so far; 0.0 unless logprobs or best_of were asked for.
        finish_reason: None while the sequence goes on.
        stop_reason: the token id that ended it, if a stop token did; for "error", "refused" and "late", the
            sentence that says why: the model failed, the request's own rules leave it no way to go on, or it had not
            begun by its deadline.
        num_cached_tokens: prompt tokens found in the prefix cache; on the request's first update only, 0 on all others.
        prompt_logprobs: if asked for, on the request's first update only, whichever sequence that is of.
        time: seconds on the engine's monotonic clock.
        prefill: seconds from when the request first ran here to this update; on its first update only, None on all
            others and where it did not run.
        pooled: the vector, or the logits of the classes, that the request wanted in place of tokens: float32,
            little-endian, neither cut nor normalised; on the last update, whose finish reason is "stop".
    """

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: PackedLogprobs | None = None
    num_forced: int = 0
    time: float = 0.0
    prefill: float | None = None
    pooled: bytes | None = None
    num_accepted: int = 0
    num_rejected: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One finished sequence, as `LLM.generate` returns it."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request in seconds on one monotonic clock (`time.monotonic`)."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """A finished request: its prompt and its `n` outputs."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = True
