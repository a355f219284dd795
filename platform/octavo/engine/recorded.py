"""A scheduler that writes down what it is told, what it is not told but sees, and what it decides.

Each call that changes it is a frame. Given the same calls with the same time, the same answers of whoever it asks, and
the same tokens per sequence and step, a scheduler decides the same: `octavo.rehearsal.replay` has it do so and compares
the frames that come of it. What it sees of time is read once in each call.

Of requests neither tokens nor texts are written, but how many tokens and the hashes of their blocks; of what a step
samples, how many tokens each sequence got and whether it ended.
"""

from __future__ import annotations

import dataclasses
import time
from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from octavo.config import EngineConfig
from octavo.cost_model import CostModel, StepWork
from octavo.engine.admission import ModelLimits
from octavo.engine.beam import Beams, NextBeams
from octavo.engine.constrained import RequestRules
from octavo.engine.plan import InFlight, StepPlan
from octavo.engine.proposals import Proposer
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Group, Sequence
from octavo.errors import ConfigError, Overloaded
from octavo.kvcache.block_pool import BlockPool
from octavo.layer_groups import ONE_GROUP, LayerGroups
from octavo.recording import Frame, Recorder, Write
from octavo.request import FinishReason, Request, SequenceUpdate
from octavo.step import StepResult

HIDDEN = {
    "prompt_token_ids", "params", "cache_salt", "adapter", "block_hashes", "session", "emitted", "seed", "asker",
    "predicted", "made_for",
}  # fmt: skip
"""Fields of a request that are not written, or as numbers."""


class Begun(Frame, tag="begun"):
    """The engine.

    Attributes:
        name: of its shard.
        wall, time: the same moment as seconds since 1970 and on the engine's clock.
        blocks: of the pool.
        groups: of layers, which share them.
    """

    name: str
    wall: float
    time: float
    config: EngineConfig
    limits: ModelLimits
    blocks: int
    groups: LayerGroups = ONE_GROUP


class Begins(NamedTuple):
    """A constraint before the first token: tokens that it forces, whether it ends there, and whether it is active."""

    forced: int
    finish: FinishReason | None
    active: bool


class Added(Frame, tag="add"):
    """A request came.

    Attributes:
        request: its fields, as far as they are written; "prompt" and "emitted" in tokens, "params" as far as they
            matter.
        chains: the block hashes of its sequences.
        begins: of its sequences, where they have constraints and are no beams.
        refused: whether the queue was full.
        waited: as in `Scheduler.add`.
    """

    time: float
    request: dict[str, Any]
    chains: list[list[bytes]]
    begins: list[Begins]
    refused: bool
    waited: float
    decisions: list[Any]


class Aborted(Frame, tag="abort"):
    """As in `Scheduler.abort`."""

    time: float
    request_id: str
    index: int | None
    why: FinishReason
    decisions: list[Any]


class Scheduled(Frame, tag="plan"):
    """A step was planned.

    Attributes:
        apart: whether some requests may not be in it.
        answers: of `may_run` and of the proposer, in the order of the questions.
        shy: places among those that run of sequences for which nothing may be proposed now.
        chunks: (request, index, tokens) of entries with more than one token.
        work: as in `StepPlan`.
        digest: of all entries: tokens computed and to compute, and the last block.
        fetched: what was seen of a slower tier (`Arrivals.seen`); None where there is none.
    """

    time: float
    apart: bool
    answers: list[int]
    shy: list[int]
    chunks: list[tuple[str, int, int]]
    work: StepWork
    digest: bytes
    decisions: list[Any]
    fetched: list[int] | None = None


class Advanced(Frame, tag="run"):
    """The step planned last was launched."""


class Got(NamedTuple):
    """What a sequence got in a step, other than one token after which it goes on.

    Attributes:
        place: among `InFlight.rows`.
        tokens: how many, of which the last `forced` were not sampled.
        right: how many were those proposed.
        active, void: of its constraint, and whether the token that is being drawn counts; False where it has none.
    """

    place: int
    tokens: int
    finish: FinishReason | None = None
    forced: int = 0
    right: int = 0
    active: bool = False
    void: bool = False


class Turned(NamedTuple):
    """What became of a search's beams in a step.

    Attributes:
        ways: (place among the beams, in how many ways it goes on), as of `NextBeams`.
        hashes: of the blocks that the new beams' tokens have filled.
        ends: (answer, tokens, why it ends) of what is told; None while the search goes on.
    """

    ways: list[tuple[int, int]]
    hashes: list[list[bytes]]
    ends: list[tuple[int, int, FinishReason | None]] | None


class Committed(Frame, tag="done"):
    """The result of the first step in flight.

    Attributes:
        seconds: that it took.
        got: where it is not the usual, and the sequence is no beam.
        hashes: (place, hashes) of blocks that became full.
        failed: places among `InFlight.pooled` whose vector is not finite.
        turns: of searches.
    """

    time: float
    seconds: float
    got: list[Got]
    hashes: list[tuple[int, list[bytes]]]
    failed: list[int]
    decisions: list[Any]
    turns: list[Turned] = msgspec.field(default_factory=list)


class Preempted(Frame, tag="preempt"):
    """As in `Scheduler.preempt_last`."""

    time: float
    needed_by: str
    decisions: list[Any]


class Lent(Frame, tag="lend"):
    """A block was taken for a step of nobody, and given back."""

    time: float
    decisions: list[Any]


class Undone(Frame, tag="undo"):
    """As in `Scheduler.roll_back`: all steps in flight, and the one that was planned last if it has not been."""

    time: float
    decisions: list[Any]


class GaveBack(Frame, tag="gave back"):
    """As in `Scheduler.give_back`: the step in flight."""

    time: float
    decisions: list[Any]


EngineFrame = Begun | Added | Aborted | Scheduled | Advanced | Committed | Preempted | Lent | Undone | GaveBack


def recorded(
    config: EngineConfig, limits: ModelLimits, pool: BlockPool, cost_model: CostModel, clock: Callable[[], float]
) -> Scheduler:
    """A scheduler that writes to `config.record`.

    Raises:
        ConfigError: nothing can be written there, or not of this engine.
    """
    if config.share_kv_cache:
        raise ConfigError("record: what comes from other shards is not recorded: leave record or share_kv_cache off")
    folder = str(config.record)
    recorder = Recorder(folder, "engine")
    settings = dataclasses.replace(config, record=None)
    recorder.write(Begun(Path(folder).name, time.time(), clock(), settings, limits, pool.num_blocks, pool.groups))
    return RecordedScheduler(config, limits, pool, cost_model, clock, recorder.write, recorder)


class RecordedScheduler(Scheduler):
    """A scheduler whose frames go to `write`."""

    def __init__(
        self,
        config: EngineConfig,
        limits: ModelLimits,
        pool: BlockPool,
        cost_model: CostModel,
        clock: Callable[[], float],
        write: Write,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(config, limits, pool, cost_model, lambda: self._time)
        self._fresh_decisions: list[Any] = []
        self.decisions.told = lambda decision: self._fresh_decisions.append(decision)
        self._now, self._time, self._write, self._recorder = clock, 0.0, write, recorder
        self._plans = False
        self._turns: list[Turned] = []
        self._hashed = pool.caching and not limits.takes_whole

    def add(
        self, request: Request, rules: RequestRules | None = None, beams: Beams | None = None, waited: float = 0.0
    ) -> None:
        """As of `Scheduler`."""
        time, refused = self._begin(), False
        try:
            super().add(request, rules, beams, waited)
        except Overloaded:
            refused = True
            raise
        finally:
            sequences = self.sequences(request.request_id)
            if sequences or refused:
                begins = [_begins(seq) for seq in sequences if seq.constraint is not None and beams is None]
                chains = [self._chain(seq) for seq in sequences]
                if self._hashed and chains:  # what starts again from the prompt has them at once
                    request.block_hashes = chains[0][: len(request.prompt_token_ids) // self.config.block_size]
                self._write(Added(time, _asked(request), chains, begins, refused, waited, self._decided()))

    def abort(self, request_id: str, index: int | None = None, why: FinishReason = "abort") -> list[SequenceUpdate]:
        """As of `Scheduler`."""
        if self._plans or not self.sequences(request_id):  # what a step ends is a part of it
            return super().abort(request_id, index, why)
        time = self._begin()
        updates = super().abort(request_id, index, why)
        self._write(Aborted(time, request_id, index, why, self._decided()))
        return updates

    def schedule(self, may_run: Callable[[str], bool] | None = None) -> StepPlan:
        """As of `Scheduler`."""
        time, shy = self._begin(), list[int]()
        answers = list[int]()
        if self.proposer is not None:
            if not isinstance(self.proposer, _Noted):
                self.proposer = _Noted(self.proposer, self.limits.vocab_size)
            self.proposer.answers = answers
            shy = [place for place, seq in enumerate(self._running) if may_run is None and _is_shy(seq)]
        fetched = None if self.fetches is None else list[int]()
        if self.fetches is not None and self.fetches.own is not None and fetched is not None:
            self.fetches.own.seen = fetched.append
        self._plans = True
        try:
            plan = super().schedule(None if may_run is None else _noted(may_run, answers))
        finally:
            self._plans = False
        chunks = [(seq.group.request.request_id, seq.index, count) for seq, count in plan.entries if count > 1]
        decided = self._decided()
        apart = may_run is not None
        self._write(Scheduled(time, apart, answers, shy, chunks, plan.work, _digest(plan), decided, fetched))
        return plan

    def advance(self, plan: StepPlan) -> InFlight:
        """As of `Scheduler`."""
        self._write(Advanced())
        return super().advance(plan)

    def commit(self, step: InFlight, result: StepResult) -> list[SequenceUpdate]:
        """As of `Scheduler`."""
        time = self._begin()
        before = [(seq, -1 if seq.ended else len(seq.token_ids)) for _, seq in step.rows]
        updates = super().commit(step, result)
        told = {(each.request_id, each.index): each for each in updates}
        got, hashes = list[Got](), list[tuple[int, list[bytes]]]()
        for place, (seq, known) in enumerate(before):
            if known < 0:
                continue
            usual = seq.group.beams is not None or (len(seq.token_ids) - known == 1 and not seq.ended)
            told_more = seq.constraint is not None and seq.group.beams is None
            if not usual or told_more or seq in step.proposed:
                got.append(_got(place, seq, known, told, step.proposed.get(seq, [])))
            if fresh := self._fresh(seq, known):
                hashes.append((place, fresh))
        failed = [place for place, (_, seq) in enumerate(step.pooled) if _finish(seq, told) == "error"]
        turns, self._turns = self._turns, []
        self._write(Committed(time, result.seconds, got, hashes, failed, self._decided(), turns))
        return updates

    def _turn(self, group: Group, turn: NextBeams) -> list[SequenceUpdate]:
        """As of `Scheduler`."""
        ways = [(group.sequences.index(beam), count) for beam, count in turn.ways.items()]
        hashes = [self._fresh(beam, len(beam.token_ids) - 1) for beam in turn.new]
        told = turn.updates
        ends = None if told is None else [(each.index, len(each.token_ids), each.finish_reason) for each in told]
        self._turns.append(Turned(ways, hashes, ends))
        return super()._turn(group, turn)

    def preempt_last(self, needed_by: str) -> bool:
        """As of `Scheduler`."""
        time = self._begin()
        found = super().preempt_last(needed_by)
        self._write(Preempted(time, needed_by, self._decided()))
        return found

    def lend(self, use: Callable[[int], None]) -> None:
        """As of `Scheduler`."""
        time = self._begin()
        try:
            super().lend(use)
        finally:
            self._write(Lent(time, self._decided()))

    def roll_back(self, plans: Iterable[StepPlan]) -> None:
        """As of `Scheduler`."""
        time = self._begin()
        super().roll_back(plans)
        self._write(Undone(time, self._decided()))

    def give_back(self, plan: StepPlan, step: InFlight) -> None:
        """As of `Scheduler`."""
        time = self._begin()
        super().give_back(plan, step)
        self._write(GaveBack(time, self._decided()))

    def close(self) -> None:
        """As of `Scheduler`."""
        super().close()
        if self._recorder is not None:
            self._recorder.close()

    def _begin(self) -> float:
        """What the time is until the next call."""
        self._time = self._now()
        return self._time

    def _decided(self) -> list[Any]:
        """What was decided since the last frame."""
        fresh, self._fresh_decisions = self._fresh_decisions, []
        return fresh

    def _chain(self, seq: Sequence) -> list[bytes]:
        """The hashes of the full blocks of a sequence that is new."""
        return list(seq.hashes(self.config.block_size)) if self._hashed else []

    def _fresh(self, seq: Sequence, known: int) -> list[bytes]:
        """The hashes of blocks that tokens after so many have filled, of what ended those that were needed."""
        size = self.config.block_size
        if not self._hashed or len(seq.token_ids) // size == known // size:
            return []
        if not seq.ended:
            seq.hashes(size)
        return seq.chain[known // size :]


class _Noted:
    """A proposer whose answers are noted, as far as steps depend on them."""

    def __init__(self, proposer: Proposer, vocab_size: int) -> None:
        self._proposer, self._vocab_size = proposer, vocab_size
        self.answers: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proposer, name)

    def begin(self, running: list[Sequence], room: int) -> bool:
        """As in `Proposer`."""
        begins = self._proposer.begin(running, room)
        self.answers.append(int(begins))
        return begins

    def follows(self, seq: Sequence) -> bool:
        """As in `Proposer`."""
        follows = self._proposer.follows(seq)
        self.answers.append(int(follows))
        return follows

    def propose(self, seq: Sequence, most: int) -> list[int]:
        """As in `Proposer`."""
        proposed = self._proposer.propose(seq, most)[:most]
        wrong = (place for place, token in enumerate(proposed) if not 0 <= token < self._vocab_size)
        self.answers.append(next(wrong, len(proposed)))  # what follows is ignored
        return proposed

    def checked(self, seq: Sequence, kept: int, proposed: int, seconds: float) -> None:
        """As in `Proposer`: what was noted last is what was kept."""
        self.answers[-1] = kept
        self._proposer.checked(seq, kept, proposed, seconds)


def _noted(may_run: Callable[[str], bool], answers: list[int]) -> Callable[[str], bool]:
    def ask(request_id: str) -> bool:
        may = may_run(request_id)
        answers.append(int(may))
        return may

    return ask


def _asked(request: Request) -> dict[str, Any]:
    """`Added.request`."""
    params = request.params
    fields = [field.name for field in dataclasses.fields(request) if field.name not in HIDDEN]
    matter = {
        "n": params.n,
        "best_of": params.best_of,
        "max_tokens": params.max_tokens,
        "logprobs": None if params.num_logprobs is None else 0,
        "prompt_logprobs": None if params.prompt_logprobs is None else 0,
        "beams": None if params.beams is None else {"width": params.beams.width},
    }
    emitted: Any = request.emitted and [None if tokens is None else len(tokens) for tokens in request.emitted]
    asked = {"prompt": len(request.prompt_token_ids), "emitted": emitted, "params": matter}
    return asked | {name: getattr(request, name) for name in fields}


def _begins(seq: Sequence) -> Begins:
    assert seq.constraint is not None
    update = None if seq.untold is None else seq.untold.update
    tokens, finish = (0, None) if update is None else (len(update.token_ids), update.finish_reason)
    return Begins(tokens, finish, seq.constraint.is_active)


def _is_shy(seq: Sequence) -> bool:
    found = None if seq.group.beams is not None else seq.constraint
    return found is not None and bool(found.suspect or found.error)


def _got(
    place: int, seq: Sequence, known: int, told: dict[tuple[str, int], SequenceUpdate], proposed: list[int]
) -> Got:
    drawn, finish, forced = seq.token_ids[known:], _finish(seq, told), 0
    if seq.constraint is None:
        return Got(place, len(drawn), finish, right=sum(map(int.__eq__, proposed, drawn)))
    update = told.get((seq.group.request.request_id, seq.index)) if seq.untold is None else seq.untold.update
    if update is not None and drawn:
        forced = update.num_forced
    right = sum(map(int.__eq__, proposed, drawn[: len(drawn) - forced]))
    finish = None if update is None else update.finish_reason
    return Got(place, len(drawn), finish, forced, right, seq.constraint.is_active, seq.is_void)


def _finish(seq: Sequence, told: dict[tuple[str, int], SequenceUpdate]) -> FinishReason | None:
    update = told.get((seq.group.request.request_id, seq.index))
    return None if update is None else update.finish_reason


def _digest(plan: StepPlan) -> bytes:
    """`Scheduled.digest`."""
    numbers = [number for seq, count in plan.entries for number in (seq.num_computed, count, seq.table.blocks[-1])]
    return blake2b(array("q", numbers).tobytes(), digest_size=8).digest()
