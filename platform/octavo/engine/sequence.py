"""A request inside the engine: its sequences, and what each has known, computed and holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from octavo.block_hash import Origin, extend_chain
from octavo.engine.admission import ModelLimits, most_tokens
from octavo.engine.constrained import Constraint, RequestRules
from octavo.engine.token_counts import TokenCounts
from octavo.engine.untold import Untold
from octavo.fairness import Place
from octavo.kvcache.block_pool import BlockPool, Prefix
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.eviction import Keeper
from octavo.pooling import Method
from octavo.request import PackedLogprobs, Request, SequenceUpdate, token_logprobs
from octavo.step import Float32, Int64, LogprobRow, SoFar

if TYPE_CHECKING:
    from octavo.engine.beam import Beams
    from octavo.engine.followed import Followed
    from octavo.engine.load import Counters

_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads the seeds of a request's sequences over 64 bits

_LEAST = 2.0**-126
"""The smallest normal float32. Smaller temperatures and repetition penalties are raised to it: they draw the same
tokens, and zeros would make NaNs of 0/0 and -inf * 0."""

NOT_FINITE = "the model produced values that are not finite for this request"

LATE = 2**20
"""Late sequences are counted from here in the last part of `Sequence.order`; below it is the index in the request."""


@dataclass(slots=True, eq=False)
class Group:
    """A request in the engine and the sequences it became.

    Attributes:
        place: in the order in which requests run.
        max_tokens: the request's limit, or what the context leaves.
        samples: whether a token is sampled where a sequence has computed all it knows. A request that does not sample
            ends there.
        method: how the vector that it wants is made of its prompt's states; None where it wants tokens.
        sequences: living sequences; one until the prompt is computed.
        num_made: sequences created so far, of the request's `num_sequences`.
        origin: what the block hashes start from: model, adapter and cache namespace.
        forked: whether the first sequence has been forked into those that start with it.
        prompt_logprobs: if asked for, filled while the prompt is computed.
        announced: whether the first update was made; it alone carries the prompt's numbers.
        columns: temperature, top_k, top_p, min_p and number of logprobs (-1: none), as in a row of `SamplingRows`.
        penalties: presence, frequency and repetition, unless all are neutral.
        counts: the token counts that penalties start from: the prompt's.
        bias: token ids and what is added to their logits.
        banned: token ids that must not be drawn before `min_tokens`, sorted.
        named: token ids whose log probabilities are asked for by name.
        rules: what its tokens must keep to, if that is anything.
        beams: of a search; its sequences are the beams then, all with index 0.
        has_extras: whether rows have penalties, biases, banned or named tokens, or masks, or want candidates.
    """

    request: Request
    place: Place
    max_tokens: int
    end_token_ids: frozenset[int]
    stop_token_ids: frozenset[int]
    origin: Origin
    sequences: list[Sequence] = field(default_factory=list)
    num_made: int = 1
    forked: bool = False
    num_cached_tokens: int | None = None
    prompt_logprobs: PackedLogprobs | None = None
    announced: bool = False
    rules: RequestRules | None = None
    method: Method | None = None
    beams: Beams | None = None
    samples: bool = field(init=False)
    columns: tuple[float, int, float, float, int] = field(init=False)
    penalties: tuple[float, float, float] | None = None
    counts: TokenCounts | None = None
    bias: tuple[Int64, Float32] | None = None
    banned: Int64 | None = None
    named: Int64 | None = None
    has_extras: bool = field(init=False)

    @classmethod
    def of(
        cls,
        request: Request,
        limits: ModelLimits,
        place: Place,
        rules: RequestRules | None = None,
        beams: Beams | None = None,
    ) -> Group:
        """A request that has no sequences yet."""
        params = request.params
        return cls(
            request=request,
            place=place,
            max_tokens=most_tokens(request, limits),
            end_token_ids=frozenset() if params.ignore_eos else limits.end_token_ids,
            stop_token_ids=frozenset(params.stop_token_ids),
            origin=Origin.of(limits.name, request.adapter, request.cache_salt, request.prompt_token_ids),
            rules=rules,
            beams=beams,
            method=None if request.pooling is None else limits.pooling.method,
        )

    def __post_init__(self) -> None:
        params = self.request.params
        self.samples = self.max_tokens > 0
        # best_of needs the sampled tokens' log probabilities to choose by
        without = 0 if params.num_sequences > params.n else -1
        logprobs = without if params.num_logprobs is None else params.logprobs or 0
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
        if params.logprob_token_ids:
            self.named = np.array(params.logprob_token_ids, np.int64)
        extras = (self.penalties, self.bias, self.banned, self.named, self.rules, self.beams)
        self.has_extras = any(extra is not None for extra in extras)

    @property
    def num_starting(self) -> int:
        """Sequences that start from the prompt; beams fork later."""
        return 1 if self.beams is not None else self.request.params.num_sequences

    @property
    def needs_every_position(self) -> bool:
        """Whether the prompt is not complete and its log probabilities are asked for, which no cache holds."""
        return self.request.params.prompt_logprobs is not None and not self.forked

    @property
    def needs_first_state(self) -> bool:
        """Whether its vector is made of states of all positions, or of the first, which no cache holds."""
        return self.method is not None and self.method != "last"

    def admitted(self, seq: Sequence, counters: Counters) -> None:
        """One of the sequences runs: note what the cache held of the prompt, and start its log probabilities."""
        if self.num_cached_tokens is None:
            self.num_cached_tokens = min(seq.num_computed, seq.num_prompt)
            counters.prompt_tokens += seq.num_prompt
            counters.cached_tokens += self.num_cached_tokens
        if self.needs_every_position:
            self.prompt_logprobs = PackedLogprobs()

    def announce(self, update: SequenceUpdate) -> None:
        """Put the prompt's numbers into the request's first update, and no other: 20 logprobs of a token are 1 kB."""
        self.announced = True
        update.num_cached_tokens = self.num_cached_tokens or 0
        update.prompt_logprobs, self.prompt_logprobs = self.prompt_logprobs, None

    def take_prompt_logprobs(self, rows: Iterable[LogprobRow]) -> None:
        """Add those of the next prompt tokens; of a request that has ended meanwhile nobody wants them."""
        for row in rows:
            if self.prompt_logprobs is not None:
                self.prompt_logprobs.add(row.token_ids, row.logprobs, row.rank)

    def start(self, pool: BlockPool) -> None:
        """Create the first sequence, or those that go on from tokens emitted by another shard."""
        emitted = self.request.emitted
        if emitted is None or self.beams is not None:
            self.sequences = [self.sequence(0, [], pool)]
            return
        self.forked, self.num_made = True, len(emitted)
        self.sequences = [
            self.sequence(index, tokens, pool) for index, tokens in enumerate(emitted) if tokens is not None
        ]

    def reset(self, pool: BlockPool) -> list[Sequence]:
        """Give up all that is computed and not told; returns the sequences, which wait and have computed nothing.

        Where nothing was told of the request it starts again from its prompt: sequences that were forked in a step that
        failed would lack the log probabilities which that step was to compute.
        """
        since = self.sequences[0].since
        for seq in self.sequences:
            seq.reset()
        if self.beams is not None:
            self.beams.restart()
        if self.beams is not None or (not self.announced and self.request.emitted is None):
            self.forked, self.num_made = False, 1
            self.start(pool)
            self.sequences[0].since = since
        return self.sequences

    def sequence(self, index: int, output: list[int], pool: BlockPool) -> Sequence:
        """A sequence that has computed nothing."""
        request, counts = self.request, self.counts and self.counts.copy()
        if counts is not None:
            for token in output:
                counts.add(token)
        seq = Sequence(
            self,
            index,
            request.prompt_token_ids + output,
            BlockTable(pool),
            len(request.prompt_token_ids),
            order=(*self.place, index),
            counts=counts,
            expected_cached=0 if request.placement is None else request.placement.cached_tokens,
            chain=list(request.block_hashes or ()),
        )
        if self.rules is not None and self.beams is not None:
            seq.constraint = Constraint(self.rules)  # a beam's tokens all have rows: masks say what is forced
        elif self.rules is not None and self.samples:
            seq.constrain(self.rules)
        return seq

    def late_sequence(self, before: Sequence, first: Sequence | None, number: int, pool: BlockPool) -> Sequence:
        """The next of the request's sequences, one that found no place when its prompt was complete.

        Args:
            before: any sequence of the request; the prompt's hashes are taken from it.
            first: of those that wait, the one to queue behind.
            number: counts late sequences.
        """
        seq = self.sequence(self.num_made, [], pool)
        seq.order = (*(self.place if first is None else first.group.place), number)
        seq.expected_cached = seq.num_prompt - 1
        seq.chain = before.chain[: seq.num_prompt // pool.block_size]
        self.num_made += 1
        self.sequences.append(seq)
        return seq

    def seed_of(self, index: int) -> int:
        """64-bit seed of one sequence's random numbers."""
        return (self.request.seed + index * _MIX) % 2**64


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its continuation.

        0 ................. num_computed ............... num_known
        [ K and V in the cache ][ known, to be computed ]

    A prompt's chunk, a resumed sequence and a decode step differ only in how far apart the two are. Tokens of a
    launched step count as computed at once, and the tokens it samples as known, though their values are not
    (`num_pending`).

    Attributes:
        order: its place in the queue, and its number among the late sequences of requests: lower runs first.
        counts: of its output, where penalties need them.
        expected_cached: tokens that the cache is expected to hold while the sequence waits.
        width: rows in which its next token is sampled: its own, and one for each sequence that starts with it.
        since: when it first ran, in monotonic seconds; 0.0 before.
        num_pending: sampled tokens whose values are not known yet. Where proposed tokens are verified, they are as many
            as can be accepted.
        is_verifying: whether it is in no further step until it is known how many proposed tokens were right, or which
            token follows a beam.
        row: of the step launched last, where the first of its tokens is sampled.
        ended: whether its last update has been made.
        constraint: what its next token must keep to.
        untold: tokens that no update has told.
        is_void: whether the token that is being drawn does not count.
        so_far: of its vector, if it wants one.
        followed: what a proposer keeps of it.
        fetched: whether blocks were fetched for it since it last ran: what did not come is computed.
        awaited: whether it has told nothing since it was admitted.
        num_proposed, num_right: tokens that were proposed for it, and how many of them were right.
    """

    group: Group
    index: int
    token_ids: list[int]
    table: BlockTable
    num_prompt: int
    order: tuple[int, float, int, int]
    counts: TokenCounts | None = None
    expected_cached: int = 0
    width: int = 1
    num_computed: int = 0
    cumulative_logprob: float = 0.0
    since: float = 0.0
    chain: list[bytes] = field(default_factory=list)
    num_pending: int = 0
    is_verifying: bool = False
    row: int = -1
    ended: bool = False
    constraint: Constraint | None = None
    untold: Untold | None = None
    is_void: bool = False
    so_far: SoFar | None = None
    followed: Followed | None = None
    fetched: bool = False
    awaited: bool = False
    num_proposed: int = 0
    num_right: int = 0

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
    def is_decoding(self) -> bool:
        """Whether all but its newest token, a sampled one, is computed: every step computes that and samples the next.

        A prompt whose last token is left, or a resumed sequence, still prefills.
        """
        num_known = len(self.token_ids) + self.num_pending
        return num_known - self.num_computed == 1 and num_known > self.num_prompt

    @property
    def is_late(self) -> bool:
        """Whether it found no place when the request's other sequences started from the computed prompt."""
        return self.order[3] >= LATE

    @property
    def is_ending(self) -> bool:
        """Whether the last token it may have is being sampled."""
        return self.num_pending > 0 and self.num_known - self.num_prompt >= self.group.max_tokens

    @property
    def is_held(self) -> bool:
        """Whether it is in no further step until the tokens that are being drawn are known."""
        if self.is_verifying:
            return True
        if self.num_pending == 0 or (constraint := self.constraint) is None:
            return False
        # what recurrent layers have taken in cannot be given back, should the token not count
        return self.is_void or constraint.is_active or self.table.state is not None

    def hashes(self, block_size: int) -> list[bytes]:
        """The hash chain over all full blocks of known tokens."""
        root, turn = self.group.origin
        extend_chain(self.chain, root, self.token_ids, block_size, turn)
        return self.chain

    def append(self, token: int, logprobs: LogprobRow | None) -> SequenceUpdate:
        """Add a sampled token; returns the update that tells of it, and of the sequence's end if it is the last one.

        Args:
            token: -1 where the logits were not finite.
        """
        update = SequenceUpdate(self.group.request.request_id, self.index, [])
        self._add(update, token, logprobs)
        return update

    def pooled(self, vector: Float32) -> SequenceUpdate:
        """End with the vector that was asked for."""
        update = self._update()
        if np.isfinite(vector).all():
            update.finish_reason, update.pooled = "stop", vector.astype("<f4", copy=False).tobytes()
        else:
            update.finish_reason, update.stop_reason = "error", NOT_FINITE
        return update

    def verify(
        self, proposed: list[int], row: int, tokens: list[int], logprobs: dict[int, LogprobRow]
    ) -> SequenceUpdate:
        """Add sampled tokens while they are those proposed, and the next one; give back what the others computed.

        The tokens that are forced then come with them.

        Args:
            row: of the token after the newest one; the rows of those after proposed tokens follow.
            tokens, logprobs: of all rows, as in `StepResult`.
        """
        update, self.is_verifying = self._update(), False
        if tokens[row] >= 0 and self.constraint is not None:
            self._end_or_go_on(update)
        for place, guess in enumerate([*proposed, None] if update.finish_reason is None else (), row):
            self._add(update, tokens[place], logprobs.get(place))
            if update.finish_reason is not None or tokens[place] != guess:
                break
        self.give_back(len(self.token_ids) - 1)
        if self.constraint is not None:
            self._force(update)
        return update

    def constrain(self, rules: RequestRules) -> None:
        """Have its tokens keep to rules: those it has, and those that are forced before any is drawn."""
        self.constraint = rules.constraint()
        so_far = self.token_ids[: self.num_prompt]
        for token in self.token_ids[self.num_prompt :]:
            so_far.append(token)
            self.constraint.push(so_far, self.num_prompt)
        first, update = len(self.token_ids), self._update()
        self._end_or_go_on(update)
        self._force(update)
        if update.token_ids or update.finish_reason is not None:
            self.untold = Untold(update, first, len(update.token_ids) if self.is_scored else 0)

    def take(self, token: int, logprobs: LogprobRow | None) -> list[SequenceUpdate]:
        """As `append`, of a sequence with a constraint: the tokens that are forced then come with it.

        Where their log probabilities are asked for, the update waits until a step has computed them.
        """
        constraint = self.constraint
        assert constraint is not None
        if self.is_void:
            self.is_void = False
            known = len(self.token_ids)
            self.give_back(min(known, known if self.untold is None else self.untold.next) - 1)
            return []
        updates = []
        if self.untold is not None:
            updates.append(self.untold.told(self.cumulative_logprob, self._score))
            self.untold = None
            if updates[0].finish_reason is not None:
                return updates
        update = self._update()
        if token >= 0 and constraint.error is not None:
            update.finish_reason, update.stop_reason = "refused", constraint.error
        else:
            self._add(update, token, logprobs)
        first = len(self.token_ids)
        self._force(update)
        if self.is_scored and (forced := len(self.token_ids) - first):
            self.untold = Untold(update, first, forced)
        else:
            updates.append(update)
        waits = self.untold is not None or update.finish_reason is None
        if self.num_pending and waits and self._decides_next(constraint, len(self.token_ids) > first):
            self.is_void = True
        return updates

    def _decides_next(self, constraint: Constraint, forced: bool) -> bool:
        """Whether what is being drawn without its constraint does not count."""
        return forced or constraint.is_active or bool(constraint.banned(self.token_ids, self.num_prompt))

    @property
    def is_scored(self) -> bool:
        """Whether log probabilities of its tokens are needed."""
        return self.group.columns[4] >= 0

    def _force(self, update: SequenceUpdate) -> None:
        """Add what its constraint leaves no choice about."""
        constraint = self.constraint
        assert constraint is not None
        sampled = len(update.token_ids)
        while update.finish_reason is None and (tokens := constraint.forced(self.token_ids, self.num_prompt)):
            for token in tokens:
                if update.finish_reason is None:
                    self._add(update, token, None)
        update.num_forced = len(update.token_ids) - sampled

    def _update(self) -> SequenceUpdate:
        return SequenceUpdate(self.group.request.request_id, self.index, [])

    def _end_or_go_on(self, update: SequenceUpdate) -> None:
        """End where the constraint says so."""
        if self.constraint is None:
            return
        if self.constraint.error is not None:
            update.finish_reason, update.stop_reason = "refused", self.constraint.error
        elif self.constraint.complete:
            update.finish_reason = "stop"

    def _score(self, update: SequenceUpdate, row: LogprobRow) -> None:
        """Note the log probability of an update's next token."""
        self.cumulative_logprob += row.logprobs[0]
        update.cumulative_logprob = self.cumulative_logprob
        params = self.group.request.params
        if params.num_logprobs is not None or params.stop_strings:  # tokens after a stop string are taken off the sum
            update.logprobs = update.logprobs or []
            update.logprobs.append(token_logprobs(row.token_ids, row.logprobs, row.rank, row.named))

    def _add(self, update: SequenceUpdate, token: int, logprobs: LogprobRow | None) -> None:
        group, params = self.group, self.group.request.params
        if token < 0:
            update.finish_reason = "error"
            update.stop_reason = NOT_FINITE
            return
        self.token_ids.append(token)
        update.token_ids.append(token)
        if self.counts is not None:
            self.counts.add(token)
        if logprobs is not None:
            self._score(update, logprobs)
        if self.constraint is not None:
            self.constraint.push(self.token_ids, self.num_prompt)
        num_output = len(self.token_ids) - self.num_prompt
        if num_output >= params.min_tokens:
            if token in group.end_token_ids:
                update.finish_reason = "stop"
            elif token in group.stop_token_ids:
                update.finish_reason, update.stop_reason = "stop", token
        if update.finish_reason is None and self.constraint is not None:
            self._end_or_go_on(update)
        if update.finish_reason is None and num_output >= group.max_tokens:
            update.finish_reason = "length"

    def give_back(self, num_computed: int) -> None:
        """Give up the keys and values of all but the first `num_computed` tokens; fewer may be computed by now.

        All are given up where the window of what follows has left the cache.
        """
        if num_computed < self.num_computed:
            self.num_computed = num_computed if self.table.goes_on_from(num_computed) else 0
            self.table.shrink(self.num_computed)

    def begin(self, pool: BlockPool, cached: Prefix) -> None:
        """Take up the cached blocks of a prefix."""
        size, marks = pool.block_size, list[int]()
        if pool.states is not None:
            shared = self.reusable(pool)
            marks = [len(pool.stored(shared)) * size, len(shared) * size]
        self.table = BlockTable(pool, cached, Keeper.of(self.group.request), marks)
        self.num_computed = len(cached) * size

    def reset(self) -> None:
        """Give up what is computed and what is being drawn; known tokens stay."""
        self.table.free()
        self.num_computed = self.num_pending = 0
        self.width, self.row = 1, -1
        self.is_void = self.is_verifying = False

    def fork(self, index: int) -> Sequence:
        """A sibling that shares everything computed so far."""
        return Sequence(
            group=self.group,
            index=index,
            token_ids=list(self.token_ids),
            table=self.table.fork(),
            num_prompt=self.num_prompt,
            order=(*self.order[:3], index),
            counts=self.counts and self.counts.copy(),
            num_computed=self.num_computed,
            since=self.since,
            chain=list(self.chain),
            constraint=self.constraint and self.constraint.copy(),
            untold=self.untold and self.untold.of(index),
        )

    def publish(self, pool: BlockPool, num_stored: int) -> list[int] | None:
        """Publish the full blocks among the first `num_stored` tokens, as far as their values are known.

        Returns:
            as `BlockTable.publish`.
        """
        num_stored = min(num_stored, len(self.token_ids))
        if num_stored // pool.block_size > self.table.num_published and pool.caching:
            return self.table.publish(self.hashes(pool.block_size), num_stored)
        return None

    def cached_blocks(self, pool: BlockPool) -> Prefix:
        """Cached blocks of a prefix of the sequence.

        A token is left to compute where one is sampled after it, or where its state is wanted.
        """
        found = pool.match(self.reusable(pool))
        if not self.is_late or pool.states is not None:
            return found
        lent = self.lent_blocks(self._most_cached(pool.block_size), pool)
        return found if lent is None else max(found, lent, key=len)

    def reusable(self, pool: BlockPool) -> list[bytes]:
        """Hashes of the blocks of a prefix that need not be computed if a cache has them."""
        if self.group.needs_every_position or self.group.needs_first_state or not pool.caching:
            return []
        return self.hashes(pool.block_size)[: self._most_cached(pool.block_size)]

    def _most_cached(self, block_size: int) -> int:
        known = self.num_known - (self.group.samples or self.group.method is not None)
        if self.untold is not None and not self.untold.is_complete:
            known = min(known, self.untold.next - 1)
        return known // block_size

    def ending(self, pool: BlockPool) -> list[Sequence]:
        """The sequences that end with this one, which samples nothing: all of its request, of which it is the first.

        Those of a request that goes on from another shard exist already, and end one by one.
        """
        group = self.group
        if not group.forked:
            group.forked, group.num_made = True, group.request.params.num_sequences
            group.sequences += [group.sequence(index, [], pool) for index in range(1, group.num_made)]
            return list(group.sequences)
        return [self]

    def siblings(self) -> list[Sequence]:
        """Fork the request's first sequence, whose prompt is complete, into its `width`; returns the new ones."""
        group = self.group
        made = [self.fork(index) for index in range(1, self.width)]
        group.sequences += made
        group.forked, group.num_made, self.width = True, self.width, 1
        return made

    def lent_blocks(self, count: int, pool: BlockPool) -> Prefix | None:
        """The first `count` of the prompt's blocks, if another of the request's sequences holds them computed."""
        full, groups = min(count, self.num_prompt // pool.block_size), pool.groups
        size = full * pool.block_size
        have = (other for other in self.group.sequences if other.num_computed >= size and other.table.blocks)
        lender = next((other for other in have if other.table.goes_on_from(size)), None)
        if lender is None:
            return None
        first = groups.first(size, pool.block_size) if groups.windowed else 0
        return Prefix([table[:full].tolist() for table in lender.table.tables], first)
