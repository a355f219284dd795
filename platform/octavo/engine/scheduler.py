"""Who gets how many tokens in the next step.

One rule covers chunked prefill, prefix hits, resume after preemption and decoding: a sequence has `num_computed` and
`num_known` tokens, and a step hands out a budget of tokens until they meet (vLLM v1's rule; chunked prefill is
Sarathi's, Agrawal et al. 2024).

    1. Running sequences, in the order of `octavo.fairness`. A decoding one always gets its token; the others share what
       the budget leaves: the chunk.
    2. Waiting ones, same order, while there are places, chunk and blocks. The head of the queue is never overtaken.

A request's n sequences start together once its prompt is computed, as far as there are places that nobody waits for.
The others come late: one of them at a time joins the queue, behind the first request that waits there. So every late
sequence lets one request go first, neither kind waits for long, and no place is kept free for either. They share the
prompt's blocks.

The chunk is bounded by `max_num_batched_tokens` and, with `target_itl` set, by the cost model (`budget`).

The beams of a search (`beam`) are in the same steps, and take as many places as it may have. One that loses its blocks
takes all others with it: the search begins again, once there are more blocks than it had.

A sequence ends with the token that is its last, or, where its request samples nothing, once its prompt is computed or
found in the cache. One that wants a vector ends with it: its last token is always computed.

An encoder (`ModelLimits.takes_whole`) computes a prompt in one step: those that wait are admitted while the budget
holds all of the head, and a prompt that is longer than any budget runs alone. Nothing of it is kept, so its blocks are
numbers without memory, one for each prompt.

Blocks are taken on demand. When they run out, the last sequence in the order gives up all of its blocks and queues
again; the prefix cache usually makes the recomputation cheap. The first in the order can always go on, because the pool
holds at least one sequence of `max_model_len`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable

from octavo.config import EngineConfig
from octavo.cost_model import CostModel
from octavo.engine.activation import one_way
from octavo.engine.admission import ModelLimits, check_request
from octavo.engine.beam import Beams, NextBeams, blocks_wanted, check_beams, too_wide
from octavo.engine.behind import checked, may_guess
from octavo.engine.below import SHORT_SECONDS, Part, above_all, is_below, part_of, take_back
from octavo.engine.budget import prompt_budget
from octavo.engine.constrained import RequestRules
from octavo.engine.deadlines import Deadlines, told
from octavo.engine.decisions import DecisionLog, Notes
from octavo.engine.fair_queues import queues_of
from octavo.engine.fetches import Fetches
from octavo.engine.load import Counters, num_filled_slots, shard_state
from octavo.engine.plan import InFlight, StepPlan
from octavo.engine.proposals import Proposer, proposals
from octavo.engine.queues import blocks_to_start, requeue
from octavo.engine.sequence import LATE, NOT_FINITE, Group, Sequence
from octavo.errors import BadRequest, Overloaded
from octavo.fairness import place_of
from octavo.kvcache.block_pool import BlockPool
from octavo.load import ShardState
from octavo.request import FinishReason, Request, SequenceUpdate
from octavo.step import StepResult


class Scheduler:
    """Admits, schedules, preempts and finishes sequences; holds no tensors.

    Args:
        config: limits of a step.
        limits: of the model.
        pool: the KV blocks; must hold at least one sequence of `max_model_len`.
        clock: monotonic seconds.

    Attributes:
        proposer: proposes tokens of decoding sequences, for a step to verify.
        fetches: blocks that a slower tier or another shard has, if there is one.
        filling: blocks that the step in flight fills with a token drawn before it.
    """

    proposer: Proposer | None = None
    fetches: Fetches | None = None

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
        self._note = Notes(self.decisions, lambda: self._clock())
        self.counters = Counters()
        self._clock = clock
        self._groups: dict[str, Group] = {}
        self._searching: dict[Group, Beams] = {}  # those that have their places
        self._running, self._waiting = queues_of(config.scheduling_policy)
        self._arrivals = 0
        self._late = itertools.count(LATE)
        self._deadlines = Deadlines()
        self.filling: list[int] = []
        self._part = Part(0)  # of the step that is planned

    # ---- requests in ------------------------------------------------------------------------------------------

    def add(
        self, request: Request, rules: RequestRules | None = None, beams: Beams | None = None, waited: float = 0.0
    ) -> None:
        """Queue a request.

        Args:
            rules: what its tokens must keep to.
            beams: of its search, if it wants one.
            waited: seconds since it came here.

        Raises:
            BadRequest: it can never run here.
            Overloaded: the waiting queue is full.
        """
        self.check(request)
        resumed = request.emitted is not None  # it was accepted before, by a shard that is gone
        if not resumed:
            self._check_queue(request)
        self._arrivals += 1
        self.counters.arrived += request.params.num_sequences
        policy, deadline, came = self.config.scheduling_policy, request.deadline, self._clock() - waited
        place = place_of(policy, request.priority, deadline, came, self._arrivals, resumed=resumed)
        group = Group.of(request, self.limits, place, rules, beams)
        group.start(self.pool)
        self._groups[request.request_id] = group
        for seq in group.sequences:
            self._waiting.join(seq)
            self._note("queue", seq, "new" if not resumed else "resumed", waiting=len(self._waiting))
        if deadline is not None and not resumed:
            self._deadlines.add(came + deadline, group, len(self._groups))

    def _check_queue(self, request: Request) -> None:
        limit = self.config.max_num_queued_requests
        if (over := len(self._waiting) - self.num_places() - limit) < 0:
            return
        # until as many of those that wait have begun as are too many
        retry = self.state().start_seconds() * (over + 1) / (len(self._waiting) + 1)
        self._note.add("reject", request.request_id, 0, "queue full", retry_after=retry)
        raise Overloaded(f"{len(self._waiting)} requests are waiting; the queue holds {limit}", retry)

    def check(self, request: Request) -> None:
        """Raise BadRequest if the request can never run here."""
        if request.request_id in self._groups:
            raise BadRequest(f"request id {request.request_id!r} is already in use", "request_id")
        check_request(request, self.limits)
        check_beams(request, self.limits, self.config)

    def abort(self, request_id: str, index: int | None = None, why: FinishReason = "abort") -> list[SequenceUpdate]:
        """End a request, or one of its sequences, now; unknown ids are ignored (it may just have finished)."""
        group = self._groups.get(request_id)
        if group is None:
            return []
        if group.beams is not None:
            whole = index is None or group.request.params.n == 1
            return self._end_search(group, group.beams.failed(why)) if whole else []
        if index is not None and not group.forked and group.request.params.num_sequences > 1:
            return []  # its sequences do not exist yet: they start from the computed prompt
        if index is None:
            group.num_made = group.request.params.num_sequences  # no late one will be created
        updates = []
        for seq in [s for s in group.sequences if index is None or s.index == index]:
            self._withdraw(seq)
            updates.append(self._finish(seq, why, SequenceUpdate(request_id, seq.index, [])))
        return updates

    # ---- the step: schedule, advance, commit -------------------------------------------------------------------

    def schedule(self, may_run: Callable[[str], bool] | None = None) -> StepPlan:
        """Decide the next step; blocks are taken here.

        Args:
            may_run: whether a request may be in it; None: all may.
        """
        self._note.step += 1
        plan, self.filling = StepPlan(published=self.filling), []
        if self.pool.states is not None:
            self.pool.states.begin_step(len(self._running))
        if self.fetches is not None:
            idle = not self._running and not self._waiting
            self.fetches.begin_step(plan, self._waiting, idle=idle, apart=may_run is not None)
        if self._deadlines:
            for group in self._deadlines.passed(self._clock(), self._groups):
                plan.ended += told(group, self.abort(group.request.request_id, why="late"))
        if (head := self._waiting.head(may_run)) is not None:
            self._make_room(head)
        claims = self._running.claims(head, self._wanted)
        part = self._part = part_of(self._running, head, self.cost_model)
        in_step = self._running if part.running == len(self._running) else self._running[: part.running]
        chunk = whole = prompt_budget(in_step, self.config, self.cost_model, alone=part.alone)
        self.pool.gone.time = self._clock()
        preemptions = self.counters.preemptions
        # who raises is found among those that compute what they must and no more
        proposer = self.proposer if may_run is None else None
        if proposer is not None and not proposer.begin(self._running, self._room_of(plan, chunk)):
            proposer = None
        place = 0
        while place < len(self._running):  # preemption shortens the list, from its end
            seq = self._running[place]
            apart = place >= part.running or (may_run is not None and not may_run(seq.group.request.request_id))
            if apart or seq.is_verifying or (seq.constraint is not None and seq.is_held):
                pass
            elif seq.group.beams is not None and seq.is_decoding:
                place += self._continue_beams(seq, plan) - 1  # all of them, or they are all gone
            elif seq.is_decoding:
                if proposer is not None and may_guess(seq) and proposer.follows(seq):
                    proposed = self._propose(proposer, seq, chunk, plan)
                    chunk, whole = chunk - proposed, whole - proposed
                elif not seq.is_ending:
                    self._continue(seq, 1, plan)
            elif seq.untold is None and seq.constraint is not None and seq.num_output and seq.remaining:
                # forced tokens: one at least, as for those that decode
                chunk -= self._continue(seq, min(seq.remaining, max(chunk, 1)), plan)
            elif seq.remaining and (room := chunk - self._running.held_back(seq, claims)) > 0:
                if taken := self._continue(seq, min(seq.remaining, room), plan):
                    self._note("chunk", seq, "fits", tokens=taken)
                chunk -= taken
            elif seq.remaining:  # else it samples nothing, and ends when the step under way is committed
                self._note("shrink", seq, "no budget left", need=seq.remaining)
            place += 1
        if self.counters.preemptions != preemptions:  # a preempted sequence must not come straight back in
            self._note.wait(self._waiting, len(self._running), "running sequences needed blocks")
        else:
            while chunk > 0 and (head := self._waiting.head(may_run)) is not None:
                if is_below(head) > part.alone:
                    self._note.wait(self._waiting, len(self._running), "others come first")
                    break
                if (count := self._admit(head, chunk, plan)) is None:
                    break
                chunk -= count
            else:
                why = "no budget left" if chunk <= 0 else "others run apart"
                self._note.wait(self._waiting, len(self._running), why)
        plan.widen(self._idle_places(plan))
        plan.measure(has_prompts=chunk < whole)
        plan.apart = part.alone and self.cost_model.predict(plan.work) >= SHORT_SECONDS
        self._running.charge(plan, self.cost_model)
        return plan

    def _make_room(self, head: Sequence) -> None:
        """Take the places and blocks that the head of the queue lacks from those who give them up."""
        while (last := self._running.giving_up(head)) is not None and not self._has_room(head):
            self._preempt(last, needed_by=head.group.request.request_id)

    def _wanted(self, head: Sequence) -> int:
        """Tokens that the head of the queue would compute; 0 where it has no room."""
        cached = len(head.cached_blocks(self.pool)) * self.config.block_size
        return head.num_known - cached if self._has_room(head) else 0

    def _has_room(self, seq: Sequence) -> bool:
        """Whether a sequence finds the places and blocks to start."""
        beams = seq.group.beams
        if self.num_places() < (1 if beams is None else beams.width):
            return False
        return blocks_to_start(seq, seq.cached_blocks(self.pool), self.pool, self._running) <= self.pool.num_free

    def _propose(self, proposer: Proposer, seq: Sequence, chunk: int, plan: StepPlan) -> int:
        """Plan a decoding sequence with what is proposed for it; returns how many tokens that is.

        They take rows and blocks that nobody else needs in this step, and leave prompts a block of the chunk.
        """
        if seq.num_pending:
            return 0  # what follows is proposed when its newest token is known
        proposed = proposals(proposer, seq, self._room_of(plan, chunk), self.limits.vocab_size)
        if proposed and seq.constraint is not None:
            proposed, plan.behind[seq], seconds = checked(seq, wanted := proposed)
            proposer.checked(seq, len(proposed), len(wanted), seconds)
        if self._continue(seq, 1 + len(proposed), plan) and proposed:
            plan.proposed[seq] = proposed
            plan.num_proposed += len(proposed)
            return len(proposed)
        return 0

    def _room_of(self, plan: StepPlan, chunk: int) -> int:
        """Tokens that may still be proposed in a step."""
        size = self.config.block_size
        free = self.pool.num_free // self.pool.groups.count
        return min(self._idle_places(plan), chunk - size, (free - len(self._running) - 2) * size)

    def _continue(self, seq: Sequence, count: int, plan: StepPlan) -> int:
        """Take blocks for `count` tokens of a running sequence, preempting from the back; returns tokens scheduled."""
        count = one_way(seq, count)
        self.pool.gone.taker = seq.group.request.request_id
        seq.table.pass_by(seq.num_computed)
        while (copies := seq.table.grow(seq.num_computed, seq.num_computed + count)) is None:
            if self.fetches is not None and self.fetches.give_up(self._waiting):
                continue
            victim = self._running[-1]
            self._preempt(victim, needed_by=seq.group.request.request_id)
            if victim is seq:
                return 0
        plan.copies.extend(copies)
        plan.add(seq, count, self.pool)
        return count

    def _continue_beams(self, first: Sequence, plan: StepPlan) -> int:
        """Plan all beams of a search, of which `first` is the first that runs; returns how many they are.

        They get their tokens together or not at all.
        """
        beams = first.group.sequences
        while not self.pool.has_room(sum(beam.table.takes(beam.num_computed) for beam in beams), len(beams)):
            victim = self._running[-1]
            self._preempt(victim, needed_by=first.group.request.request_id)
            if victim.group is first.group:
                return 0
        return sum(self._continue(beam, 1, plan) for beam in beams)

    def _admit(self, seq: Sequence, chunk: int, plan: StepPlan) -> int | None:
        """Start the head of the queue; returns tokens scheduled, None when it has to wait."""
        if seq.is_held:
            self._note("wait", seq, "a token is not known yet")
            return None
        beams = seq.group.beams
        if self.num_places() < (1 if beams is None else beams.width):
            self._note("wait", seq, "no running place", running=len(self._running))
            return None
        cached = seq.cached_blocks(self.pool)
        size = self.config.block_size
        if len(cached) * size == seq.num_known:  # it samples nothing, and there is nothing to compute
            seq.begin(self.pool, cached)
            seq.group.admitted(seq, self.counters)
            plan.ended += self._complete(seq)
            return 0
        if beams is not None and beams.blocks > self.pool.num_blocks:
            plan.ended += self._end_search(seq.group, beams.failed("refused", too_wide(beams, self.pool)))
            return 0
        if (needed := blocks_to_start(seq, cached, self.pool, self._running)) > self.pool.num_free:
            self._note("wait", seq, "no KV blocks", needed=needed, free=self.pool.num_free)
            return None
        if self.fetches is not None and (reason := self.fetches.begin(seq, cached, self._waiting)) is not None:
            self._note("fetch", seq, reason, cached=len(cached) * size)
            return 0
        count = seq.num_known if self.limits.takes_whole else min(seq.num_known - len(cached) * size, chunk)
        if count > chunk and plan.entries:  # one that is longer than any budget runs alone
            self._note("wait", seq, "no budget left", need=count)
            return None
        self._waiting.leave(seq)
        if beams is not None:
            self._searching[seq.group] = beams
        seq.since, seq.fetched, seq.awaited = seq.since or self._clock(), False, True
        self.pool.gone.taker = seq.group.request.request_id
        seq.begin(self.pool, cached)
        count = one_way(seq, count)
        copies = seq.table.grow(seq.num_computed, seq.num_computed + count)
        assert copies == [], "cached blocks are full blocks, so admission never copies"
        seq.group.admitted(seq, self.counters)
        self._running.join(seq)
        plan.add(seq, count, self.pool)
        plan.admitted.append(seq)
        self._note("admit", seq, "fits", cached=seq.num_computed, tokens=count)
        if seq.is_late:
            self._line_up(seq)
        return count

    def _idle_places(self, plan: StepPlan) -> int:
        """Places that neither those that run or wait nor proposed tokens take: a step has `max_num_seqs` rows."""
        waiting = len(self._waiting) if self._part.alone else self._waiting.above
        return self.num_places() + self._part.held(self._running) - waiting - plan.num_proposed

    def num_places(self) -> int:
        """Sequences that could start beside those that run."""
        reserved = sum(beams.width - len(group.sequences) for group, beams in self._searching.items())
        places = self.config.max_num_seqs - len(self._running) - reserved
        return places if self.pool.states is None else min(places, self.pool.states.places(len(self._running)))

    def advance(self, plan: StepPlan) -> InFlight:
        """Advance the books of a launched step, whose tokens are still unknown, so that the next can be planned."""
        return plan.advance(self._fork)

    def commit(self, step: InFlight, result: StepResult) -> list[SequenceUpdate]:
        """Apply the results of a step: append tokens, finish, free. Steps are committed in the order of their launch.

        Step N + 1 may already be running with sequences that finish here; its tokens for them are discarded at its
        commit. Their blocks can be reused immediately: the new owner's first write is ordered after step N + 1.
        """
        if self.cost_model.ready:
            self.counters.stepped(result.seconds, self.cost_model.predict(step.work))
        if self.proposer is not None:
            self.proposer.took(step.work, sum(map(len, step.proposed.values())), result.seconds)
        self.cost_model.observe(step.work, result.seconds)
        step.take_scores(result)
        updates, tokens, logprobs = list[SequenceUpdate](), result.token_ids.tolist(), result.logprobs
        searches: dict[Group, list[tuple[int, Sequence]]] = {}
        for row, seq in step.rows:
            proposed = step.proposed.get(seq) if step.proposed else None
            seq.num_pending -= 1 if proposed is None else 1 + len(proposed)
            if seq.ended:
                continue
            if seq.group.beams is not None:
                searches.setdefault(seq.group, []).append((row, seq))
                continue
            if seq.constraint is not None and proposed is None:
                updates += [self._tell(seq, each) for each in seq.take(tokens[row], logprobs.get(row))]
                continue
            if proposed is None:
                update = seq.append(tokens[row], logprobs.get(row))
            else:
                update = seq.verify(proposed, row, tokens, logprobs)
                seq.publish(self.pool, seq.num_computed)  # what was proposed is certain now
                self._verified(seq, proposed, update)
            updates.append(self._tell(seq, update))
        for group, rows in searches.items():
            assert group.beams is not None
            updates += self._turn(group, group.beams.step(rows, result, NOT_FINITE))
        for seq in step.complete:
            if not seq.ended:
                updates += self._complete(seq)
        for row, seq in step.pooled:
            if not seq.ended:
                updates.append(self._tell(seq, seq.pooled(result.pooled[row])))
        return updates

    def _turn(self, group: Group, turn: NextBeams) -> list[SequenceUpdate]:
        """Go on with the beams that a step has made, or end the search."""
        if group.sequences[0].awaited:
            self._note.token(group.sequences[0])
        if turn.updates is not None:
            return self._end_search(group, turn.updates)
        for seq in turn.gone:
            self._withdraw(seq)
            seq.ended = True
            group.sequences.remove(seq)
        for seq in turn.new:
            self._running.join(seq)
        group.sequences += turn.new
        return []

    def _verified(self, seq: Sequence, proposed: list[int], update: SequenceUpdate) -> None:
        drawn = update.token_ids[: len(update.token_ids) - update.num_forced]
        right = sum(map(int.__eq__, proposed, drawn))  # only the last one drawn can be another
        origin = "text" if self.proposer is None else self.proposer.verified(seq, right, len(proposed))
        self.counters.verified(right, len(proposed), origin)
        seq.num_proposed, seq.num_right = seq.num_proposed + len(proposed), seq.num_right + right
        if origin == "predicted":
            update.num_accepted, update.num_rejected = right, len(proposed) - right

    def _fork(self, seq: Sequence) -> list[Sequence]:
        """The sequences that continue from here: when a prompt is complete, as many as the plan has rows for."""
        if seq.group.forked:
            return [seq]
        siblings = seq.siblings()
        for sibling in siblings:
            self._running.join(sibling)
        self._line_up(seq)
        return [seq, *siblings]

    def _line_up(self, before: Sequence) -> None:
        """Queue the next late sequence of a request, if one is left, behind the first request that waits."""
        group = before.group
        if group.num_made < group.num_starting:
            first = self._waiting.first(group)
            self._waiting.join(late := group.late_sequence(before, first, next(self._late), self.pool))
            self._note("queue", late, "late", waiting=len(self._waiting))

    def _tell(self, seq: Sequence, update: SequenceUpdate) -> SequenceUpdate:
        """Go on with a sequence that got tokens, or end it; returns the update that says so."""
        if update.finish_reason is not None:
            self._withdraw(seq)
            return self._finish(seq, update.finish_reason, update)
        if seq.num_pending:  # the next step stores this token, and may fill a block with it
            self.filling += seq.publish(self.pool, seq.num_computed) or ()
        return self._announce(seq, update)

    def _complete(self, seq: Sequence) -> list[SequenceUpdate]:
        """End a sequence that samples nothing, and those that would have started from its prompt."""
        self._withdraw(seq)
        ending, name = seq.ending(self.pool), seq.group.request.request_id
        return [self._finish(each, "length", SequenceUpdate(name, each.index, [])) for each in ending]

    def _announce(self, seq: Sequence, update: SequenceUpdate) -> SequenceUpdate:
        update.time = self._clock()
        if seq.awaited:
            self._note.token(seq)
        if not seq.group.announced:
            seq.group.announce(update)
            update.prefill = update.time - seq.since if seq.since else None
        return update

    # ---- leaving ----------------------------------------------------------------------------------------------

    def preempt_last(self, needed_by: str) -> bool:
        """Take the place and the blocks of the last running sequence; False where none runs."""
        if runs := bool(self._running):
            self._preempt(self._running[-1], needed_by)
        return runs

    def lend(self, use: Callable[[int], None]) -> None:
        """Have a block used by a step of nobody; somebody gives his up for it if need be."""
        while (blocks := self.pool.take(1)) is None:
            self.preempt_last(needed_by="a control step")
        try:
            use(blocks[0])
        finally:
            self.pool.release(blocks)

    def roll_back(self, plans: Iterable[StepPlan]) -> None:
        """Undo steps that failed: nothing they did counts, and what runs or ran in them queues to be computed again."""
        plans = list(plans)
        if self.fetches is not None:
            self.fetches.stop(self._waiting)
        self.pool.unpublish([*self.filling, *(block for plan in plans for block in plan.published)])
        self.filling = []
        if self.pool.states is not None:
            for block_hash in (each for plan in plans for step in plan.states for each in step.kept):
                self.pool.states.drop(block_hash)
        if self.proposer is not None:
            self.proposer.raised(seq for plan in plans for seq in plan.proposed)
        for seq in self._running:
            self._note("preempt", seq, "its step failed", held=len(seq.table.held()))
        self._searching.clear()
        requeue(self._groups.values(), self._running, self._waiting, self.pool)

    def give_back(self, plan: StepPlan, step: InFlight) -> None:
        """Undo a step that gave way (`octavo.step.GaveWay`), the only one in flight."""
        self.pool.unpublish([*self.filling, *plan.published])
        self.filling = []
        take_back(plan, step, self.pool)
        for seq in plan.admitted:
            if not seq.ended:
                self._give_up(seq, "its step gave way")

    def _preempt(self, seq: Sequence, needed_by: str) -> None:
        why = f"blocks needed by {needed_by}"
        if seq.group.beams is None:
            self._give_up(seq, why)
            return
        self._note("preempt", seq, why, held=len(seq.table.held()))
        self._begin_again(seq.group, seq.group.beams)

    def _give_up(self, seq: Sequence, why: str) -> None:
        self._note("preempt", seq, why, held=len(seq.table.held()))
        self._running.leave(seq)
        seq.table.free()
        seq.num_computed = 0
        self._waiting.join(seq)
        self.counters.preemptions += 1

    def _begin_again(self, group: Group, beams: Beams) -> None:
        """Give up all beams of a search: it queues with its prompt, for more blocks than it had."""
        beams.blocks = blocks_wanted(group.sequences)
        for seq in group.sequences:
            self._running.leave(seq)
            seq.ended = True  # a step in flight says nothing of it any more
        del self._searching[group]
        for seq in group.reset(self.pool):
            self._waiting.join(seq)
        self.counters.preemptions += 1

    def _withdraw(self, seq: Sequence) -> None:
        """Take a sequence out of wherever it is, and its blocks with it."""
        if not self._running.leave(seq):
            self._waiting.leave(seq)
            if seq.is_late and seq.index == seq.group.num_made - 1:
                self._line_up(seq)
        seq.table.free()

    def _finish(self, seq: Sequence, reason: FinishReason, update: SequenceUpdate) -> SequenceUpdate:
        group, seq.ended = seq.group, True
        if self.proposer is not None:
            self.proposer.ended(seq)
        group.sequences.remove(seq)
        seconds = self._clock() - seq.since if seq.since else 0.0
        self.counters.ended(seq.num_output, seconds, generates=group.method is None)
        if not group.sequences:
            del self._groups[group.request.request_id]
        update.finish_reason = reason
        self._note("finish", seq, reason, tokens=seq.num_output, proposed=seq.num_proposed, right=seq.num_right)
        return self._announce(seq, update)

    def _end_search(self, group: Group, updates: list[SequenceUpdate]) -> list[SequenceUpdate]:
        """End all beams of a search; returns the updates that say so."""
        beams, group.sequences = group.sequences, []
        self._searching.pop(group, None)
        del self._groups[group.request.request_id]
        for seq in beams:
            self._withdraw(seq)
            seq.ended = True
            if self.proposer is not None:
                self.proposer.ended(seq)
        seconds = self._clock() - beams[0].since if beams[0].since else 0.0
        told = Counter[int]()
        for update in updates:
            told[update.index] += len(update.token_ids)
            if update.finish_reason is not None:
                self.counters.ended(told[update.index], seconds)
                self._note("finish", beams[0], update.finish_reason, tokens=told[update.index])
        return [self._announce(beams[0], update) for update in updates]

    # ---- looking in -------------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self._running or self._waiting) or (self.fetches is not None and self.fetches.active)

    def running_requests(self) -> list[str]:
        """Ids of the requests that run."""
        return list(dict.fromkeys(seq.group.request.request_id for seq in self._running))

    def sequences(self, request_id: str) -> list[Sequence]:
        """The living sequences of a request."""
        group = self._groups.get(request_id)
        return [] if group is None else group.sequences

    def state(self) -> ShardState:
        """How busy the shard is; another thread may call it (it reads copies, a step old at most)."""
        running, held = above_all(self._running.copy())
        chunk, cost = prompt_budget(running, self.config, self.cost_model), self.cost_model.published
        of_shard = self.config, self.pool, running, self._waiting, self.counters
        return shard_state(*of_shard, chunk=chunk, held=held, cost=cost)

    def num_filled_slots(self) -> int:
        """KV slots in owned blocks that hold a token; another thread may call it."""
        return num_filled_slots(self._running.copy(), self.pool)

    def check_integrity(self) -> None:
        """Prove that every block has exactly the owners it counts (`BlockPool.check_integrity`)."""
        arriving = [] if self.fetches is None else self.fetches.tables()
        self.pool.check_integrity([table.held() for table in [*arriving, *(seq.table for seq in self._running)]])
        if self.proposer is not None:
            self.proposer.check_integrity()

    def close(self) -> None:
        """Give up what helps it."""
        if self.proposer is not None:
            self.proposer.close()
