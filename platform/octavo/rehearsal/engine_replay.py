"""The real scheduler, told what a recorded one was told.

It needs no model, no clock and no tokens: the recording says how many each sequence got, and their blocks' hashes.
Every token that goes on is GUESS, which is also what is proposed; OTHER is one that was not, END ends a sequence.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import cast

import msgspec
import numpy as np

from octavo.cost_model import CostModel, StepWork
from octavo.engine.arrivals import Arrivals, Fetch, Lot
from octavo.engine.beam import Beams, NextBeams, fork_of
from octavo.engine.constrained import RequestRules
from octavo.engine.fetches import Fetches
from octavo.engine.plan import InFlight, StepPlan
from octavo.engine.proposals import Proposer
from octavo.engine.recorded import (
    Aborted,
    Added,
    Advanced,
    Begins,
    Begun,
    Committed,
    EngineFrame,
    GaveBack,
    Got,
    Lent,
    Preempted,
    RecordedScheduler,
    Scheduled,
    Turned,
    Undone,
)
from octavo.engine.sequence import Sequence
from octavo.errors import Overloaded
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.tier import Bytes, KVBlocks, Tier, TierCounters
from octavo.recording import Write
from octavo.request import FinishReason, Request, SequenceUpdate
from octavo.step import LogprobRow, StepResult

END, GUESS, OTHER = 0, 1, 2

_NONE = np.zeros(0, np.int64)
_ROWS = np.zeros((1, 1), np.uint8)
_ROW = LogprobRow([GUESS], [0.0], 1)


class EngineReplay:
    """A scheduler that is told what a recorded one was told.

    Args:
        write: takes its frames, one for each that is applied.

    Attributes:
        now: of its clock.
        updates: what the frame applied last did to sequences.
        step: content and seconds of the step that it committed; None where it committed none.
        chains: block hashes of sequences, by request and index, as far as steps have filled blocks of theirs.
    """

    def __init__(self, begun: Begun, write: Write) -> None:
        self.now = begun.time
        limits = dataclasses.replace(begun.limits, vocab_size=OTHER + 1, end_token_ids=frozenset([END]))
        config = begun.config
        caching = config.enable_prefix_caching
        pool = BlockPool(begun.blocks, config.block_size, caching=caching, groups=begun.groups)
        self.scheduler = _Scheduler(config, limits, pool, CostModel(), lambda: self.now, write)
        self.updates: list[SequenceUpdate] = []
        self.step: tuple[StepWork, float] | None = None
        self.chains: dict[tuple[str, int], list[bytes]] = {}
        self._plan: StepPlan | None = None  # planned and not launched
        self._flight: deque[tuple[StepPlan, InFlight]] = deque()

    def apply(self, frame: EngineFrame) -> None:
        """Do what a frame says was done."""
        self.now, self.updates, self.step = getattr(frame, "time", self.now), [], None
        scheduler = self.scheduler
        match frame:
            case Added():
                scheduler.chains = deque(frame.chains)
                with suppress(Overloaded):
                    request = request_of(frame)
                    beams = None if request.params.beams is None else _Beams(request, scheduler)
                    scheduler.add(request, rules_of(frame), beams, frame.waited)
            case Aborted():
                self.updates = scheduler.abort(frame.request_id, frame.index, frame.why)
            case Scheduled():
                self._plan = scheduler.plan_again(frame)
                self.updates = self._plan.ended
            case Advanced():
                assert self._plan is not None
                self._flight.append((self._plan, scheduler.advance(self._plan)))
                self._plan = None
            case Committed():
                self._commit(frame)
            case Preempted():
                scheduler.preempt_last(frame.needed_by)
            case Lent():
                scheduler.lend(lambda _: None)
            case Undone():
                launched = [plan for plan, _ in self._flight]
                failed = [self._plan] if self._plan is not None and self._plan.entries else []
                scheduler.roll_back([*failed, *launched])
                self._flight.clear()

            case GaveBack():
                scheduler.give_back(*self._flight.popleft())

    def _commit(self, frame: Committed) -> None:
        plan, step = self._flight.popleft()
        for place, hashes in frame.hashes:
            seq = step.rows[place][1]
            del seq.chain[len(seq.token_ids) // self.scheduler.config.block_size :]
            seq.chain += hashes
            self.chains[seq.group.request.request_id, seq.index] = seq.chain
        self.scheduler.turns = deque(frame.turns)
        self.updates = self.scheduler.commit(step, result_of(step, frame))
        self.step = plan.work, frame.seconds


class _Scheduler(RecordedScheduler):
    """A scheduler that takes hashes and answers as they are recorded."""

    chains: deque[list[bytes]]
    turns: deque[Turned]

    def _chain(self, seq: Sequence) -> list[bytes]:
        seq.chain = self.chains.popleft()
        return list(seq.chain)

    def plan_again(self, frame: Scheduled) -> StepPlan:
        answers = deque(frame.answers)
        for place, seq in enumerate(self._running):
            if seq.constraint is not None:
                seq.constraint.suspect = int(place in frame.shy)
        asks = bool(answers) and not frame.apart
        self.proposer = cast(Proposer, _Answers(answers)) if asks else None
        if frame.fetched is not None:
            if self.fetches is None:
                self.fetches = _fetches(self.pool, self.cost_model)
            cast(_Arrivals, self.fetches.own).told = deque(frame.fetched)
        return self.schedule((lambda _: bool(answers.popleft())) if frame.apart else None)


class _Answers:
    """A proposer that says what one has said."""

    def __init__(self, answers: deque[int]) -> None:
        self._answers = answers

    def begin(self, running: list[Sequence], room: int) -> bool:
        return bool(self._answers.popleft())

    def follows(self, seq: Sequence) -> bool:
        return bool(self._answers.popleft())

    def propose(self, seq: Sequence, most: int) -> list[int]:
        return [GUESS] * self._answers.popleft()

    def verified(self, seq: Sequence, right: int, proposed: int) -> str:
        return "text"

    def took(self, work: StepWork, proposed: int, seconds: float) -> None: ...

    def checked(self, seq: Sequence, kept: int, proposed: int, seconds: float) -> None: ...

    def raised(self, sequences: Iterable[Sequence]) -> None: ...

    def ended(self, seq: Sequence) -> None: ...


class _Beams(Beams):
    """A search that goes on as one did.

    Args:
        scheduler: is told how.
    """

    def __init__(self, request: Request, scheduler: _Scheduler) -> None:
        super().__init__(request, frozenset())
        self._name, self._scheduler = request.request_id, scheduler

    def step(self, rows: list[tuple[int, Sequence]], result: StepResult, error: str) -> NextBeams:
        """As of `Beams`."""
        turned, beams = self._scheduler.turns.popleft(), list(rows[0][1].group.sequences)
        if turned.ends is not None:
            return NextBeams(updates=[
                SequenceUpdate(self._name, index, [GUESS] * count, finish_reason=finish)
                for index, count, finish in turned.ends
            ])  # fmt: skip
        turn = NextBeams({beams[place]: count for place, count in turned.ways})
        turn.gone = [beam for beam in beams if beam not in turn.ways]
        slots, hashes = self.free_slots(turn.ways), iter(turned.hashes)
        for beam, count in turn.ways.items():
            turn.new += [fork_of(beam, next(slots)) for _ in range(count - 1)]
        for seq in (*turn.ways, *turn.new):
            seq.token_ids.append(GUESS)
            seq.is_verifying = False
        for seq in turn.new:
            del seq.chain[(len(seq.token_ids) - 1) // self._scheduler.config.block_size :]
            seq.chain += next(hashes)
        return turn


def _fetches(pool: BlockPool, cost_model: CostModel) -> Fetches:
    """Blocks come as they came, and nothing is saved."""
    tier, blocks = cast(Tier, _NoTier()), cast(KVBlocks, _NoBlocks())
    fetches = Fetches(tier, blocks, pool, cost_model)
    fetches.own = _Arrivals(tier, blocks, pool, cost_model, TierCounters())
    pool.released = pool.tier = None
    return fetches


class _Arrivals(Arrivals):
    """Blocks that come as they came."""

    told: deque[int]

    def _next(self) -> int:
        self.seen(told := self.told.popleft())
        return told

    def found(self, tier: Tier, chain: list[bytes]) -> int:
        return self._next()

    def saving(self, more: int, ours: float) -> float:
        return float(self._next())

    def _came(self, fetch: Fetch) -> Lot | None:
        good = self._next()
        return None if good < 0 else Lot(_ROWS, good, 0.0)

    def _over(self, now: float) -> list[Fetch]:
        places = [self._next() for _ in range(self._next())]
        return [self.fetches[place] for place in places]

    def _read_on(self) -> None: ...


class _NoTier:
    """A tier of which everything is told."""

    def __init__(self) -> None:
        self.failures, self.changes = Counter[str](), deque[tuple[bool, bytes]]()


class _NoBlocks:
    """A cache without content."""

    block_bytes = 1

    def write(self, blocks: list[int], data: Bytes) -> None: ...


class _Rules:
    """Rules of which only is known what came of them.

    Args:
        begins: of the sequences in the order in which they are made, the last for all others.
        emitted: tokens that these have at once.
    """

    never = _NONE

    def __init__(self, begins: list[Begins], emitted: list[int]) -> None:
        self._begins = deque(zip(begins, emitted, strict=True))

    def constraint(self) -> _Constraint:
        """As in `RequestRules`."""
        begins, emitted = self._begins[0] if len(self._begins) == 1 else self._begins.popleft()
        constraint = _Constraint(self)
        got = Got(0, emitted + begins.forced, begins.finish, begins.forced, active=begins.active)
        constraint.expect(got, has_untold=False)
        return constraint


class _Constraint:
    """A constraint that says what one has said, for the tokens that are to come next."""

    needs_mask = False

    def __init__(self, rules: _Rules) -> None:
        self.rules = rules
        self.error: str | None = None
        self.complete = self.is_active = self._voids = False
        self.suspect = self._left = self._forced = 0
        self._finish: FinishReason | None = None

    def expect(self, got: Got, *, has_untold: bool) -> None:
        """What is to come."""
        self._left, self._forced, self._finish = got.tokens, got.forced, got.finish
        self.is_active, self._voids = got.active, got.void
        self.error, self.complete = None, False
        if not self._left and not has_untold:
            self._end()

    def _end(self) -> None:
        self.error = "recorded" if self._finish == "refused" else None
        self.complete = self._finish == "stop"

    def copy(self) -> _Constraint:
        return copy.copy(self)

    def push(self, output: list[int], start: int = 0) -> None:
        self._left -= 1
        if not self._left:
            self._end()

    def forced(self, output: list[int], start: int) -> list[int]:
        count, self._forced = self._forced, 0
        return [GUESS] * count

    def banned(self, output: list[int], start: int) -> list[int]:
        return [GUESS] if self._voids else []

    def permits(self, token: int) -> bool:
        return True


def request_of(frame: Added) -> Request:
    """The request, as far as it is recorded."""
    asked = dict(frame.request)
    asked["prompt_token_ids"] = [GUESS] * asked.pop("prompt")
    asked["emitted"] = asked["emitted"] and [count if count is None else [GUESS] * count for count in asked["emitted"]]
    return msgspec.convert(asked | {"seed": 0}, Request)


def rules_of(frame: Added) -> RequestRules | None:
    """What its tokens must keep to, as far as that is recorded."""
    if not frame.begins:
        return None
    emitted = [count for count in frame.request["emitted"] or [0] if count is not None]
    return cast(RequestRules, _Rules(frame.begins, emitted))


def result_of(step: InFlight, frame: Committed) -> StepResult:
    """A result with which each sequence gets what it got."""
    tokens = [GUESS] * sum(1 + len(step.proposed.get(seq, ())) for _, seq in step.rows)
    for got in frame.got:
        row, seq = step.rows[got.place]
        _fill(tokens, row, got, step.proposed.get(seq, []), seq)
    vectors = {row: np.full(1, np.nan if place in frame.failed else 0.0, np.float32)
               for place, (row, _) in enumerate(step.pooled)}  # fmt: skip
    rows = [_ROW] * sum(count for _, count in step.scores)
    return StepResult(np.array(tokens, np.int64), {}, rows, frame.seconds, vectors)


def _fill(tokens: list[int], row: int, got: Got, proposed: list[int], seq: Sequence) -> None:
    """Say the tokens of a sequence, the first of which is that of `row`."""
    sampled = got.tokens - got.forced
    if seq.constraint is not None:
        cast(_Constraint, seq.constraint).expect(got, has_untold=seq.untold is not None)
    if got.finish == "error":
        tokens[row + sampled] = -1
    elif got.finish == "stop" and seq.constraint is None:
        tokens[row + sampled - 1] = END
    elif 0 < sampled <= len(proposed):
        tokens[row + sampled - 1] = OTHER
    if 0 < sampled == got.right:  # also the token with which it ended
        proposed[sampled - 1] = tokens[row + sampled - 1]
