"""What a recording says of the requests that came, the machine that computed them, and how long they took.

Engines' recordings say it all; a router's says when requests came to a gateway, before they waited for a shard's step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.config import EngineConfig
from octavo.cost_model import Cost, StepWork
from octavo.engine.admission import ModelLimits
from octavo.engine.recorded import Added, Scheduled
from octavo.errors import ConfigError
from octavo.layer_groups import LayerGroups
from octavo.recording import find_recordings, kind_of
from octavo.rehearsal.engine_replay import EngineReplay
from octavo.rehearsal.replay import following, read_recording
from octavo.routing import recorded as routing
from octavo.routing.router import RoutingConfig
from octavo.scaling import recorded as scaling
from octavo.scaling.policy import Targets

Floats = npt.NDArray[np.float64]

_STEPS = 20_000
"""Steps of an engine that are kept, at most."""

_EXPLAINS = 0.97
"""Part of the error that a further term may leave."""

USUAL_DELAY = 0.001
"""Seconds from a gateway to a shard where no router was recorded."""


@dataclass(slots=True, eq=False)
class Told:
    """A request and what it got. Times in seconds since 1970.

    Attributes:
        came: to the gateway. Where no router was recorded, to the engine, which takes requests in between two steps:
            those that it took in at once came evenly spread over the step before.
        taken: when its first engine took it in.
        added: the frame that says so.
        chain: hashes of the blocks of its prompt and of the first sequence's tokens.
        session: what stands for it in a router's recording.
        tokens: that each sequence got.
        first: when its first token was there; None where none came.
        gaps: between one update of a sequence and the next.
    """

    came: float
    taken: float
    added: Added
    chain: list[bytes]
    session: str = ""
    tokens: dict[int, int] = field(default_factory=dict)
    first: float | None = None
    gaps: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Machine:
    """One recorded engine. Times in seconds since 1970.

    Attributes:
        steps: that it ran, with their seconds.
        cost: fitted to these.
        pause: seconds between two steps that are not the step's; their median, for a stall is not the machine's.
        since, until: when a gateway could send requests there; where no router was recorded, always.
    """

    name: str
    config: EngineConfig
    limits: ModelLimits
    blocks: int
    groups: LayerGroups
    steps: list[tuple[StepWork, float]]
    cost: Cost
    pause: float
    since: float = 0.0
    until: float = math.inf


@dataclass(slots=True)
class Traffic:
    """All that was recorded, in order of arrival.

    Attributes:
        routing: of the routers; None where none was recorded.
        capacity: requests that a gateway gives a shard at once.
        delay: seconds from a router's decision until a shard has the request.
        targets: of the autoscaler; None where none was recorded.
        starts: seconds from when it asked for a shard until that served.
    """

    told: list[Told]
    machines: list[Machine]
    routing: RoutingConfig | None = None
    capacity: int = 10_000
    gateways: int = 1
    delay: float = USUAL_DELAY
    targets: Targets | None = None
    starts: list[float] = field(default_factory=list)

    def shards_on_average(self) -> float | None:
        """That were there while requests came; None where no router was recorded."""
        first, last = self.told[0].came, self.told[-1].came
        if self.routing is None or last <= first:
            return None
        there = (min(last, machine.until) - max(first, machine.since) for machine in self.machines)
        return sum(max(0.0, seconds) for seconds in there) / (last - first)


def read_traffic(path: Path) -> Traffic:
    """Read what was recorded of one model.

    Raises:
        ConfigError: there is no recording of an engine, or one is damaged.
    """
    files = find_recordings(path)
    found: dict[str, Told] = {}
    machines: list[Machine] = []
    for file in (each for each in files if kind_of(each) == "engine"):
        with following(file):
            machines.append(_read_engine(file, found))
    if not machines:
        raise ConfigError(f"there is no recording of an engine in {path}")
    if len({(machine.limits.name, machine.config.block_size) for machine in machines}) > 1:
        raise ConfigError(f"{path} has recordings of several models: name the folder of one")
    traffic = Traffic([], machines)
    delays: list[float] = []
    routers = [file for file in files if kind_of(file) == "router"]
    for file in sorted(routers, key=_begun):
        with following(file):
            _read_router(file, traffic, found, delays)
    if delays:
        traffic.gateways, traffic.delay = len(routers), max(0.0, float(np.percentile(delays, 10)))
    for file in (each for each in files if kind_of(each) == "scaler"):
        with following(file):
            read_scaler(file, traffic)
    traffic.told = sorted((told for told in found.values() if told.tokens), key=lambda told: told.came)
    if not traffic.told:
        raise ConfigError(f"no request of {path} has got a token: there is nothing to compare with")
    return traffic


def _read_engine(file: Path, found: dict[str, Told]) -> Machine:
    """Replay an engine's recording and note what its requests got."""
    frames = read_recording(file)
    begun: Any = next(frames)
    replay = EngineReplay(begun, lambda _: None)
    offset, last = begun.wall - begun.time, dict[tuple[str, int], float]()
    tokens = dict[tuple[str, int], int]()  # emitted elsewhere, and here
    steps, pauses, ended, worked = list[tuple[StepWork, float]](), list[float](), 0.0, False
    came: list[Told] = []
    for frame in frames:
        replay.apply(frame)  # type: ignore[arg-type]  # those of an engine
        if isinstance(frame, Added) and frame.chains:
            came += _add(frame, offset, found)
            emitted = enumerate(frame.request["emitted"] or ())
            tokens |= {(frame.request["request_id"], index): count or 0 for index, count in emitted}
        if isinstance(frame, Scheduled):
            _spread(came, steps[-1][1] if worked else 0.0)
            came = []
        for update in replay.updates:
            key = update.request_id, update.index
            tokens[key] = tokens.get(key, 0) + len(update.token_ids)
            if update.token_ids:
                _note(found[update.request_id], replay.now + offset, last.get(key))
                last[key] = replay.now + offset
        if replay.step is not None:
            steps.append(replay.step)
            if worked:
                pauses.append(replay.now - ended - replay.step[1])
            ended, worked = replay.now, replay.scheduler.has_work
    for (name, index), count in tokens.items():
        found[name].tokens[index] = max(count, found[name].tokens.get(index, 0))
    for (name, index), chain in replay.chains.items():
        if index == 0 and len(chain) > len(found[name].chain):
            found[name].chain = chain
    pause = max(0.0, median(pauses)) if pauses else 0.0
    some = steps[:: 1 + len(steps) // _STEPS]
    return Machine(begun.name, begun.config, begun.limits, begun.blocks, begun.groups, some, fit(some), pause)


def _add(frame: Added, offset: float, found: dict[str, Told]) -> list[Told]:
    """Note a request that an engine takes in; returns it, if none is known that did so earlier."""
    name, now = frame.request["request_id"], frame.time + offset
    told = found.setdefault(name, Told(math.inf, math.inf, frame, frame.chains[0]))
    if now >= told.taken:
        return []
    told.came, told.taken, told.added = now, now, frame
    return [told]


def _spread(came: list[Told], seconds: float) -> None:
    """Say that requests came evenly spread over the step before."""
    for place, told in enumerate(came):
        told.came -= seconds * (1 - (place + 0.5) / len(came))


def _note(told: Told, now: float, before: float | None) -> None:
    """A sequence got tokens, as it did before."""
    told.first = min(now, told.first or now)
    if before is not None:
        told.gaps.append(now - before)


def _begun(file: Path) -> float:
    with following(file):
        begun: Any = next(read_recording(file))
        return float(begun.wall)


def _read_router(file: Path, traffic: Traffic, found: dict[str, Told], delays: list[float]) -> None:
    frames, known = read_recording(file), set[str]()
    begun: Any = next(frames)
    traffic.capacity, offset = begun.capacity, begun.wall - begun.time
    machines, now = {machine.name: machine for machine in traffic.machines}, begun.wall
    for frame in frames:
        now = max(now, getattr(frame, "time", 0.0) + offset)
        if isinstance(frame, routing.Configured):
            traffic.routing = frame.config
        elif isinstance(frame, routing.Joined) and frame.shard in machines:
            machine = machines[frame.shard]
            machine.since, machine.until = machine.since or now, math.inf
        elif isinstance(frame, routing.Left) and frame.shard in machines:
            machines[frame.shard].until = now
        elif isinstance(frame, routing.Routed) and frame.ticket not in known and frame.ticket in found:
            known.add(frame.ticket)  # it is routed again where it moves
            told = found[frame.ticket]
            told.came, told.session = frame.time + offset, frame.query.session
            delays.append(told.taken - told.came)


def read_scaler(file: Path, traffic: Traffic) -> None:
    """What an autoscaler went by, and how long the shards took to start that it asked for."""
    target, asked = None, deque[float]()
    for frame in read_recording(file):
        if isinstance(frame, scaling.Scaled):
            seen, traffic.targets = frame.seen, frame.seen.targets
            asked.extend([seen.now] * max(0, seen.target - (seen.target if target is None else target)))
            target = seen.target
    for since in sorted(machine.since for machine in traffic.machines):
        if asked and asked[0] < since:  # the others were there, or replace some that died
            traffic.starts.append(since - asked.popleft())


def fit(steps: Sequence[tuple[StepWork, float]]) -> Cost:
    """The costs that explain steps: least squares of the relative error, none negative, and the right time in all.

    A term that explains next to nothing is left out. So what no two steps differ in counts as part of every step.
    """
    table = np.array([(1, *work[:4], seconds) for work, seconds in steps], float).reshape(-1, 6)
    amounts = table[:, :5] / np.maximum(table[:, 5:], 1e-9)
    costs, error = _least_squares(amounts, [0])
    while True:
        kept = [i for i in range(5) if costs[i] or i == 0]
        more = [_least_squares(amounts, [*kept, i]) for i in range(5) if i not in kept]
        best = min(more, key=lambda each: each[1], default=(costs, error))
        if best[1] >= _EXPLAINS * error or error < 1e-6:
            whole = (table[:, :5] @ costs).sum()  # what held a few steps up counts, a little in each
            return Cost(*(costs * (table[:, 5].sum() / whole if whole else 1.0)).tolist())
        costs, error = best


def _least_squares(amounts: Floats, kept: list[int]) -> tuple[Floats, float]:
    """The costs of some terms, and the error that is left, on average."""
    costs = np.zeros(5)
    while kept and len(amounts):
        found = np.linalg.lstsq(amounts[:, kept], np.ones(len(amounts)), rcond=None)[0]
        if found.min() >= 0:
            costs[kept] = found
            break
        kept = [term for term, cost in zip(kept, found, strict=True) if cost >= 0]
    return costs, float(np.sqrt(np.mean((amounts @ costs - 1) ** 2))) if len(amounts) else 0.0
