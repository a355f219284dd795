"""Who gets how many tokens in the next step.

One rule covers chunked prefill, prefix hits, resume after preemption and decoding: a sequence has `num_computed` and
`num_known` tokens, and a step hands out a budget until they meet.

    1. Running sequences, in order of (priority, arrival). A decoding one gets its token; the rest of the budget is the
       chunk that sequences with more to compute share.
    2. Waiting ones, same order, while there are places, chunk and blocks. The head of the queue is never overtaken.

A request's n sequences start with its prompt as far as there are places that nobody waits for. The others come late:
one of them at a time is in the queue, behind the first request there. So each lets a request go first, neither waits
for long, and no place is kept for any. What the prompt stored they share.

The chunk is bounded by `max_num_batched_tokens`, and, with `target_itl` set, by what the cost model says keeps the
step within that time while streams are running.

Blocks are taken on demand. When they run out, the last sequence in the order gives all of its blocks back and queues
again; the prefix cache usually makes the recomputation cheap. The first in the order can always go on, because the
pool holds at least one sequence of `max_model_len`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from octavo.block_hash import root_hash
from octavo.config import EngineConfig
from octavo.cost_model import CostModel
from octavo.engine.admission import ModelLimits, check_request
from octavo.engine.decisions import Decision, DecisionKind, DecisionLog
from octavo.engine.line import Line, Queue
from octavo.engine.sequence import LATE, Group, Sequence
from octavo.errors import BadRequest, Overloaded
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable
from octavo.request import FinishReason, Request, SequenceUpdate, TokenLogprobs
from octavo.request import Logprob as LogprobEntry
from octavo.routing.policy import Load
from octavo.step import LogprobRow, StepResult

_AHEAD = 2**62  # a stream that somebody is reading goes before those that wait for their first token


@dataclass(slots=True)
class Plan:
    """One step as decided: which sequences compute how many tokens, and the block copies to make first.

    Attributes:
        amounts: tokens, sequences, attended, context, as the cost model counts them.
    """

    entries: list[tuple[Sequence, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    amounts: tuple[int, int, int, int] = (0, 0, 0, 0)

    def sampled(self) -> Iterator[tuple[int, Sequence]]:
        """(position in `entries`, sequence) of those whose next token is sampled, in row order.

        A prompt that becomes n sequences is sampled n times: `Sequence.width` rows.
        """
        return ((i, seq) for i, (seq, count) in enumerate(self.entries) if count == seq.remaining)

    @property
    def attended(self) -> int:
        """Sum over the step's tokens of the positions each attends to (the cost model's unit)."""
        return sum(count * (seq.num_computed + (count + 1) // 2) for seq, count in self.entries)

    @property
    def context(self) -> int:
        """Sum over the step's sequences of the positions in their cache."""
        return sum(seq.num_computed + count for seq, count in self.entries)

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.entries)


@dataclass(slots=True)
class InFlight:
    """What `commit` needs to know of a launched step, because its sequences advance before its result comes.

    Attributes:
        amounts: as in `Plan`.
        rows: whose token each row samples.
        prompt_logprobs: for whom, and how many.
    """

    amounts: tuple[int, int, int, int]
    rows: list[Sequence]
    prompt_logprobs: list[tuple[Group, int]]

    @property
    def num_tokens(self) -> int:
        return self.amounts[0]


class Scheduler:
    """Admits, schedules, preempts and finishes sequences; holds no tensors.

    Args:
        config: limits of a step.
        limits: of the model.
        pool: the KV blocks; must hold at least one sequence of `max_model_len`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        limits: ModelLimits,
        pool: BlockPool,
        cost_model: CostModel,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.limits = limits
        self.pool = pool
        self.cost_model = cost_model
        self.decisions = DecisionLog()
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_arrived = 0
        self.num_finished = 0
        self.finished_seconds = 0.0
        self.num_output_tokens = 0
        self._clock = clock
        self._groups: dict[str, Group] = {}
        self._running = Line()
        self._waiting = Queue()
        self._arrivals = 0
        self._late = itertools.count(LATE)
        self._step = 0

    # ---- requests in ------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            BadRequest: it can never run here.
            Overloaded: the waiting queue is full.
        """
        self.check(request)
        resumed = request.emitted is not None  # it was accepted before, by a shard that is gone
        if not resumed and len(self._waiting) - self._places() >= self.config.max_num_queued_requests:
            retry = max(1.0, self.seconds_of_work())
            self.decisions.add(
                Decision(
                    self._step, self._clock(), request.request_id, 0, "reject", "queue full", {"retry_after": retry}
                )
            )
            limit = self.config.max_num_queued_requests
            raise Overloaded(f"{len(self._waiting)} requests are waiting; the queue holds {limit}", retry)
        params = request.params
        room = self.limits.max_model_len - len(request.prompt_token_ids)
        self._arrivals += 1
        self.num_arrived += params.num_sequences
        group = Group(
            request=request,
            arrival=(request.priority, self._arrivals - (_AHEAD if resumed else 0)),
            arrival_time=self._clock() if request.arrival_time is None else request.arrival_time,
            max_tokens=min(params.max_tokens or room, room),
            end_token_ids=frozenset() if params.ignore_eos else self.limits.end_token_ids,
            stop_token_ids=frozenset(params.stop_token_ids),
            root=root_hash(self.limits.name, salt=request.cache_salt),
        )
        self._groups[request.request_id] = group
        group.sequences = self._sequences(group)
        for seq in group.sequences:
            self._waiting.join(seq)

    def _sequences(self, group: Group) -> list[Sequence]:
        """The request's sequences: one to compute the prompt, or those that go on from what they have emitted."""
        if group.request.emitted is None:
            return [self._sequence(group, 0, [])]
        group.forked, group.num_made = True, len(group.request.emitted)
        emitted = enumerate(group.request.emitted)
        return [self._sequence(group, index, tokens) for index, tokens in emitted if tokens is not None]

    def _sequence(self, group: Group, index: int, output: list[int]) -> Sequence:
        """A sequence that has computed nothing."""
        request, counts = group.request, group.counts and group.counts.copy()
        if counts is not None:
            for token in output:
                counts.add(token)
        return Sequence(
            group,
            index,
            request.prompt_token_ids + output,
            BlockTable(self.pool),
            len(request.prompt_token_ids),
            order=(*group.arrival, index),
            counts=counts,
            expected_cached=0 if request.placement is None else request.placement.cached_tokens,
            chain=list(request.block_hashes or ()),
        )

    def check(self, request: Request) -> None:
        """Raise BadRequest if the request can never run here."""
        if request.request_id in self._groups:
            raise BadRequest(f"request id {request.request_id!r} is already in use", "request_id")
        check_request(request, self.limits)

    def abort(self, request_id: str, index: int | None = None) -> list[SequenceUpdate]:
        """End a request, or one of its sequences, now; unknown ids are ignored (it may just have finished)."""
        group = self._groups.get(request_id)
        if group is None:
            return []
        if index is not None and not group.forked and group.request.params.num_sequences > 1:
            return []  # a sequence cannot be told apart before the prompt is shared out
        if index is None:
            group.num_made = group.request.params.num_sequences  # no late one comes to be
        updates = []
        for seq in [s for s in group.sequences if index is None or s.index == index]:
            self._withdraw(seq)
            updates.append(self._finish(seq, "abort", SequenceUpdate(request_id, seq.index, [])))
        return updates

    # ---- the step: schedule ... advance ... commit ------------------------------------------------------------

    def schedule(self) -> Plan:
        """Decide the next step; blocks are taken here."""
        self._step += 1
        plan = Plan()
        chunk = self._chunk()
        preemptions = self.num_preemptions
        place = 0
        while place < len(self._running):  # preemption shortens the list, from its end
            seq = self._running[place]
            if seq.remaining == 1:
                if not seq.is_ending:
                    self._continue(seq, 1, plan)
            elif chunk > 0:
                chunk -= self._continue(seq, min(seq.remaining, chunk), plan)
            else:
                self._note("shrink", seq, "no budget left", need=seq.remaining)
            place += 1
        if self.num_preemptions == preemptions:  # who was just put out must not come straight back in
            while self._waiting and chunk > 0 and (count := self._admit(self._waiting[0], chunk, plan)):
                chunk -= count
        self._widen(plan)
        plan.amounts = plan.num_tokens, len(plan.entries), plan.attended, plan.context
        return plan

    def _widen(self, plan: Plan) -> None:
        """Let a request's n sequences start with its prompt, as far as there are places that nobody waits for."""
        free = self._places() - len(self._waiting)
        for _, seq in plan.sampled() if free > 0 else ():
            if not seq.group.forked:
                more = min(free, seq.group.request.params.num_sequences - 1)
                seq.width = 1 + more
                free -= more

    def _chunk(self) -> int:
        """Tokens that sequences with more than one to compute may share in this step.

        Never less than a block (or the whole budget if that is smaller): neither many decoding sequences nor a target
        that cannot be met may stop prompts for ever.
        """
        decoding = [seq for seq in self._running if seq.remaining == 1 and not seq.is_ending]
        budget = self.config.max_num_batched_tokens
        least = min(self.config.block_size, budget)
        chunk = max(budget - len(decoding), least)
        if self.config.target_itl is None or not decoding:
            return chunk
        attended = sum(seq.num_known for seq in decoding)
        head = next((seq.num_computed for seq in self._running if seq.remaining > 1), 0)
        within = self.cost_model.tokens_within(self.config.target_itl, len(decoding), attended, head)
        return chunk if within is None else min(chunk, max(within, least))

    def _continue(self, seq: Sequence, count: int, plan: Plan) -> int:
        """Take blocks for `count` tokens of a running sequence, preempting from the back; returns tokens scheduled."""
        while (copies := seq.table.grow(seq.num_computed, seq.num_computed + count)) is None:
            victim = self._running[-1]
            self._preempt(victim, needed_by=seq)
            if victim is seq:
                return 0
        plan.copies.extend(copies)
        self._plan(seq, count, plan)
        return count

    def _plan(self, seq: Sequence, count: int, plan: Plan) -> None:
        """Put a sequence into the step and publish the blocks it fills there.

        A step stores the keys and values of all of its tokens before any of them attends, so whoever is admitted next
        may read those blocks in the same step: of many requests with one new prefix, the first computes it for all.
        """
        plan.entries.append((seq, count))
        self._publish(seq, seq.num_computed + count)

    def _publish(self, seq: Sequence, num_stored: int) -> None:
        """Make the full blocks among the first `num_stored` tokens findable, as far as their values are known."""
        num_stored = min(num_stored, len(seq.token_ids))
        if num_stored // self.config.block_size > seq.table.num_published and self.config.enable_prefix_caching:
            seq.table.publish(seq.hashes(self.config.block_size), num_stored)

    def _admit(self, seq: Sequence, chunk: int, plan: Plan) -> int:
        """Start the head of the queue; returns tokens scheduled, 0 when it has to wait."""
        if self._places() <= 0:
            self._note("wait", seq, "no running place", running=len(self._running))
            return 0
        cached = self._match(seq)
        size = self.config.block_size
        # The whole of what is known must fit (not only the first chunk), with 1 % to spare for those that run: else it
        # would be preempted again at once.
        fresh = -(-seq.num_known // size) - len(cached)
        idle = sum(1 for block in cached if not self.pool.is_owned(block))
        spare = self.pool.num_blocks // 100 if self._running else 0
        if fresh + idle + spare > self.pool.num_free:
            self._note("wait", seq, "no KV blocks", needed=fresh + spare, free=self.pool.num_free - idle)
            return 0
        self._waiting.leave(seq)
        seq.since = seq.since or self._clock()
        seq.table = BlockTable(self.pool, cached)
        seq.num_computed = len(cached) * size
        count = min(seq.remaining, chunk)
        copies = seq.table.grow(seq.num_computed, seq.num_computed + count)
        assert copies == [], "cached blocks are full blocks, so admission never copies"
        self._account_cached(seq)
        self._running.join(seq)
        self._plan(seq, count, plan)
        self._note("admit", seq, "fits", cached=seq.num_computed, tokens=count)
        if seq.is_late:
            self._line_up(seq)
        return count

    def _places(self) -> int:
        """Sequences that could start beside those that run."""
        return self.config.max_num_seqs - len(self._running)

    def _match(self, seq: Sequence) -> list[int]:
        """Cached blocks of a prefix of the sequence; at least one token is left to compute, to sample from."""
        full = (seq.num_known - 1) // self.config.block_size
        lent = self._lent(seq, full) if seq.is_late else []
        every_position = seq.group.request.params.prompt_logprobs is not None and not seq.group.forked
        if every_position or not self.config.enable_prefix_caching:
            return lent
        found = self.pool.match(seq.hashes(self.config.block_size)[:full])
        return max(found, lent, key=len)

    def _lent(self, seq: Sequence, count: int) -> list[int]:
        """The first `count` blocks, as far as another of the request's sequences has them: what the prompt stored."""
        full = min(count, seq.num_prompt // self.config.block_size)
        size = full * self.config.block_size
        have = (other for other in seq.group.sequences if other.num_computed >= size and other.table.blocks)
        lender = next(have, None)
        return [] if lender is None else list(lender.table.blocks[:full])

    def _account_cached(self, seq: Sequence) -> None:
        group = seq.group
        if group.num_cached_tokens is None:
            group.num_cached_tokens = min(seq.num_computed, seq.num_prompt)
            self.num_prompt_tokens += seq.num_prompt
            self.num_cached_tokens += group.num_cached_tokens
        if not group.forked and group.request.params.prompt_logprobs is not None:
            group.prompt_logprobs = [None]

    def advance(self, plan: Plan) -> InFlight:
        """Advance the books of a launched step, whose tokens are still unknown, so that the next can be planned."""
        asked = [(seq.group, wanted) for seq, count in plan.entries if (wanted := num_prompt_logprobs(seq, count))]
        sampled = [seq for _, seq in plan.sampled()]
        for seq, count in plan.entries:
            seq.num_computed += count
        rows = [line for seq in sampled for line in self._share_out(seq)]
        for row, seq in enumerate(rows):
            seq.num_pending += 1
            seq.row = row
        return InFlight(plan.amounts, rows, asked)

    def commit(self, step: InFlight, result: StepResult) -> list[SequenceUpdate]:
        """Take in what a step produced: append tokens, finish, free; steps come in the order of their launches.

        Step N + 1 may already be running with sequences that finish here; its tokens for them are discarded at its
        commit. Their blocks can be reused immediately: the new owner's first write is ordered after step N + 1.
        """
        tokens, sequences, attended, context = step.amounts
        self.cost_model.observe(tokens, sequences, attended, result.seconds, context)
        self._take_prompt_logprobs(step, result)
        updates = []
        for row, seq in enumerate(step.rows):
            seq.num_pending -= 1
            if not seq.ended:
                updates.append(self._append(seq, int(result.token_ids[row]), result.logprobs.get(row)))
        return updates

    def _share_out(self, seq: Sequence) -> list[Sequence]:
        """The sequences that continue from a computed prompt, on first sight: as many as the plan has rows for."""
        group = seq.group
        if group.forked:
            return [seq]
        siblings = [seq.fork(i) for i in range(1, seq.width)]
        group.forked, group.num_made, seq.width = True, seq.width, 1
        for sibling in siblings:
            group.sequences.append(sibling)
            self._running.join(sibling)
        self._line_up(seq)
        return [seq, *siblings]

    def _line_up(self, before: Sequence) -> None:
        """Put the next of a request's n sequences, if one is left, behind the first request that waits."""
        group = before.group
        if group.num_made >= group.request.params.num_sequences:
            return
        priority, arrival = group.arrival
        first = self._waiting.first(priority)
        seq = self._sequence(group, group.num_made, [])
        seq.order = priority, arrival if first is None else first.order[1], next(self._late)
        seq.expected_cached = seq.num_prompt - 1
        seq.chain = before.chain[: seq.num_prompt // self.config.block_size]
        group.num_made += 1
        group.sequences.append(seq)
        self._waiting.join(seq)

    def _append(self, seq: Sequence, token: int, logprobs: LogprobRow | None) -> SequenceUpdate:
        group = seq.group
        update = SequenceUpdate(group.request.request_id, seq.index, [])
        if token < 0:
            self._withdraw(seq)
            update.stop_reason = "the model produced values that are not finite for this request"
            return self._finish(seq, "error", update)
        seq.token_ids.append(token)
        if seq.counts is not None:
            seq.counts.add(token)
        update.token_ids.append(token)
        if logprobs is not None:
            seq.cumulative_logprob += logprobs.logprobs[0]
            update.cumulative_logprob = seq.cumulative_logprob
            if group.request.params.logprobs is not None:
                update.logprobs = [_token_logprobs(logprobs)]
        reason = self._ended(seq, token, update)
        if reason is None:
            if seq.num_pending:  # the next step stores this token, and may fill a block with it
                self._publish(seq, seq.num_computed)
            return self._announce(seq, update)
        self._withdraw(seq)
        return self._finish(seq, reason, update)

    def _ended(self, seq: Sequence, token: int, update: SequenceUpdate) -> Literal["stop", "length"] | None:
        group = seq.group
        if seq.num_output >= group.request.params.min_tokens:
            if token in group.end_token_ids:
                return "stop"
            if token in group.stop_token_ids:
                update.stop_reason = token
                return "stop"
        return "length" if seq.num_output >= group.max_tokens else None

    def _take_prompt_logprobs(self, step: InFlight, result: StepResult) -> None:
        rows = iter(result.prompt_logprobs)
        for group, count in step.prompt_logprobs:
            group.prompt_logprobs += [_token_logprobs(next(rows)) for _ in range(count)]

    def _announce(self, seq: Sequence, update: SequenceUpdate) -> SequenceUpdate:
        group = seq.group
        update.time = self._clock()
        if not group.announced:  # with n sequences the prompt's numbers are said once: 20 per token are 1 kB a token
            group.announced = True
            update.num_cached_tokens = group.num_cached_tokens or 0
            update.prompt_logprobs = group.prompt_logprobs or None
        return update

    # ---- leaving ----------------------------------------------------------------------------------------------

    def _preempt(self, seq: Sequence, needed_by: Sequence) -> None:
        self._running.leave(seq)
        held = len(seq.table.blocks)
        seq.table.free()
        seq.num_computed = 0
        self._waiting.join(seq)
        self.num_preemptions += 1
        by = needed_by.group.request.request_id
        self._note("preempt", seq, f"blocks needed by {by}", held=held)

    def _withdraw(self, seq: Sequence) -> None:
        """Take a sequence out of wherever it is, and its blocks with it."""
        if not self._running.leave(seq):
            self._waiting.leave(seq)
            if seq.is_late and seq.index == seq.group.num_made - 1:
                self._line_up(seq)
        seq.table.free()

    def _finish(self, seq: Sequence, reason: FinishReason, update: SequenceUpdate) -> SequenceUpdate:
        group, seq.ended = seq.group, True
        group.sequences.remove(seq)
        self.num_finished += 1
        self.finished_seconds += self._clock() - seq.since if seq.since else 0.0
        if not group.sequences:
            del self._groups[group.request.request_id]
        update.finish_reason = reason
        self.num_output_tokens += seq.num_output
        self._note("finish", seq, reason, tokens=seq.num_output)
        return self._announce(seq, update)

    def _note(self, kind: DecisionKind, seq: Sequence, reason: str, **numbers: float) -> None:
        request_id = seq.group.request.request_id
        self.decisions.add(Decision(self._step, self._clock(), request_id, seq.index, kind, reason, numbers))

    # ---- looking in -------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self._running or self._waiting)

    def knows(self, request_id: str) -> bool:
        """Whether the request still has a living sequence."""
        return request_id in self._groups

    @property
    def num_filled_slots(self) -> int:
        """KV slots in owned blocks that hold a token (blocks shared by several sequences count once)."""
        size, empty = self.config.block_size, dict[int, int]()
        for seq in self._running.copy():
            # All blocks before the last one are full. Sequences that have just been forked share that one.
            blocks, capacity = seq.table.blocks, size * len(seq.table.blocks)
            if capacity > seq.num_computed:
                empty[blocks[seq.num_computed // size]] = capacity - seq.num_computed
        return self.pool.num_owned * size - sum(empty.values())

    def seconds_of_work(self) -> float:
        """Predicted seconds to compute everything known but not computed yet."""
        running = self._running.copy()
        pending = sum(seq.remaining for seq in running) + self._waiting.tokens
        steps = -(-pending // self.config.max_num_batched_tokens)
        cost = self.cost_model.coefficients
        return cost.step * steps + cost.token * pending + cost.sequence * (len(running) + len(self._waiting))

    def load(self) -> Load:
        """What routers should know; another thread may call it (it reads copies, a step old at most)."""
        running, queue = self._running.copy(), self._waiting
        decoding = [seq for seq in running if seq.remaining == 1]
        computing = [(seq.num_computed, seq.remaining) for seq in running if seq.remaining > 1]
        return Load(
            running=len(decoding),
            context=sum(seq.num_known for seq in decoding),
            waiting=len(computing) + len(queue),
            prefill=sum(count for _, count in computing) + queue.uncached,
            attended=sum(count * (start + (count + 1) // 2) for start, count in computing) + queue.attended,
            chunk=self._chunk(),
            places=self.config.max_num_seqs,
            blocks=self.pool.num_blocks,
            blocks_free=self.pool.num_free,
            block_size=self.config.block_size,
            output=self.num_output_tokens / max(1, self.num_finished),
            cost=self.cost_model.published,
        )

    def check_integrity(self) -> None:
        """Prove that every block has exactly the owners it counts (`BlockPool.check_integrity`)."""
        self.pool.check_integrity([seq.table.blocks for seq in self._running])


def num_prompt_logprobs(seq: Sequence, count: int) -> int:
    """How many of the next `count` tokens of a sequence predict a prompt token whose log probability was asked for."""
    if seq.group.request.params.prompt_logprobs is None or seq.group.forked:
        return 0
    return max(0, min(seq.num_computed + count, seq.num_prompt - 1) - seq.num_computed)


def _token_logprobs(row: LogprobRow) -> TokenLogprobs:
    """vLLM's shape: the token itself with its rank, then the alternatives by rank."""
    entries = {row.token_ids[0]: LogprobEntry(row.logprobs[0], row.rank)}
    for rank, (token, value) in enumerate(zip(row.token_ids[1:], row.logprobs[1:], strict=True), 1):
        entries.setdefault(token, LogprobEntry(value, rank))
    return entries
