"""Has the real scheduler go through a recording again, and compares what it decides with what is recorded.

It needs no model, no clock and no tokens: the recording says how many each sequence got, and their blocks' hashes.
Every token that goes on is GUESS, which is also what is proposed; OTHER is one that was not, END ends a sequence.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from octavo.cost_model import CostModel
from octavo.engine.constrained import RequestRules
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
    Got,
    Lent,
    Preempted,
    RecordedScheduler,
    Scheduled,
    Undone,
)
from octavo.engine.sequence import Sequence
from octavo.errors import ConfigError, Overloaded
from octavo.kvcache.block_pool import BlockPool
from octavo.recording import Frame, kind_of, read_frames
from octavo.request import FinishReason, Request
from octavo.step import LogprobRow, StepResult

END, GUESS, OTHER = 0, 1, 2

_NONE = np.zeros(0, np.int64)
_ROW = LogprobRow([GUESS], [0.0], 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first frame of a replay that is not the recorded one.

    Attributes:
        number: of the frame.
        recorded, replayed: its fields that differ.
    """

    number: int
    frame: str
    recorded: dict[str, Any]
    replayed: dict[str, Any]


@dataclass(slots=True)
class Replayed:
    """What came of a replay.

    Attributes:
        digest: of all that was decided, with what it was decided on.
        difference: None where all is as recorded.
    """

    path: Path
    frames: int
    requests: int
    steps: int
    seconds: float
    digest: str
    difference: Difference | None = None


def read_engine(path: Path) -> Iterator[tuple[bytes, EngineFrame]]:
    """The frames of an engine's recording, encoded and not.

    Raises:
        ConfigError: it holds something else.
    """
    decode = msgspec.msgpack.Decoder(EngineFrame).decode
    try:
        for encoded in read_frames(path):
            yield encoded, decode(encoded)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is damaged, or of another version: {error}") from None


def replay_file(path: Path) -> Replayed:
    """Replay a recording, whoever wrote it.

    Raises:
        ConfigError: it is none, or holds something else.
    """
    if (kind := kind_of(path)) != "engine":
        raise ConfigError(f"{path} is a recording of a {kind}: this version replays engines")
    return replay_engine(path)


def replay_engine(path: Path) -> Replayed:
    """Replay an engine's recording, up to the first difference."""
    frames = read_engine(path)
    _, begun = next(frames, (b"", None))
    if not isinstance(begun, Begun):
        raise ConfigError(f"{path} is empty")
    made: list[Frame] = []
    replay = EngineReplay(begun, made.append)
    encode, digest = msgspec.msgpack.Encoder().encode, blake2b(digest_size=8)
    found = Replayed(path, 1, 0, 0, 0.0, "")
    for recorded, frame in frames:
        replay.apply(frame)
        encoded = encode(made.pop())
        digest.update(encoded)
        if encoded != recorded:
            found.difference = difference(found.frames, frame, msgspec.msgpack.decode(encoded, type=type(frame)))
            break
        found.frames += 1
        found.requests += isinstance(frame, Added)
        found.steps += isinstance(frame, Committed)
    found.seconds, found.digest = replay.now - begun.time, digest.hexdigest()
    return found


def difference(number: int, recorded: Frame, replayed: Frame) -> Difference:
    """What differs between two frames of a kind."""
    names = [name for name in recorded.__struct_fields__ if getattr(recorded, name) != getattr(replayed, name)]
    sides = [{name: getattr(frame, name) for name in names} for frame in (recorded, replayed)]
    return Difference(number, type(recorded).__name__, *sides)


class EngineReplay:
    """A scheduler that is told what a recorded one was told.

    Args:
        write: takes its frames, one for each that is applied.

    Attributes:
        now: of its clock.
    """

    def __init__(self, begun: Begun, write: Callable[[Frame], None]) -> None:
        self.now = begun.time
        limits = dataclasses.replace(begun.limits, vocab_size=OTHER + 1, end_token_ids=frozenset([END]))
        config = begun.config
        pool = BlockPool(begun.blocks, config.block_size, caching=config.enable_prefix_caching)
        self.scheduler = _Scheduler(config, limits, pool, CostModel(), lambda: self.now, write)
        self._plan: StepPlan | None = None  # planned and not launched
        self._flight: deque[tuple[StepPlan, InFlight]] = deque()

    def apply(self, frame: EngineFrame) -> None:
        """Do what a frame says was done."""
        self.now = getattr(frame, "time", self.now)
        scheduler = self.scheduler
        match frame:
            case Added():
                scheduler.chains = deque(frame.chains)
                with suppress(Overloaded):
                    scheduler.add(request_of(frame), rules_of(frame))
            case Aborted():
                scheduler.abort(frame.request_id, frame.index, frame.why)
            case Scheduled():
                self._plan = scheduler.plan_again(frame)
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

    def _commit(self, frame: Committed) -> None:
        _, step = self._flight.popleft()
        for place, hashes in frame.hashes:
            seq = step.rows[place][1]
            del seq.chain[len(seq.token_ids) // self.scheduler.config.block_size :]
            seq.chain += hashes
        self.scheduler.commit(step, result_of(step, frame))


class _Scheduler(RecordedScheduler):
    """A scheduler that takes hashes and answers as they are recorded."""

    chains: deque[list[bytes]]

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

    def checked(self, seq: Sequence, kept: int, proposed: int, seconds: float) -> None: ...

    def raised(self, sequences: Iterable[Sequence]) -> None: ...

    def ended(self, seq: Sequence) -> None: ...


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
        got = Got(0, emitted + begins.forced, begins.finish, begins.forced, begins.active)
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
        _fill(tokens, row, got, len(step.proposed.get(seq, ())), seq)
    vectors = {row: np.full(1, np.nan if place in frame.failed else 0.0, np.float32)
               for place, (row, _) in enumerate(step.pooled)}  # fmt: skip
    rows = [_ROW] * sum(count for _, count in step.scores)
    return StepResult(np.array(tokens, np.int64), {}, rows, frame.seconds, vectors)


def _fill(tokens: list[int], row: int, got: Got, proposed: int, seq: Sequence) -> None:
    """Say the tokens of a sequence, the first of which is that of `row`."""
    sampled = got.tokens - got.forced
    if seq.constraint is not None:
        cast(_Constraint, seq.constraint).expect(got, has_untold=seq.untold is not None)
    if got.finish == "error":
        tokens[row + sampled] = -1
    elif got.finish == "stop" and seq.constraint is None:
        tokens[row + sampled - 1] = END
    elif 0 < sampled <= proposed:
        tokens[row + sampled - 1] = OTHER
