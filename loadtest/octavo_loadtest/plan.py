"""Plans a whole run before it starts: every request, its text and its time. The same load and seed give the same
plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest import arrivals as laws
from octavo_loadtest.datasets import read
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.job import Session, Turn
from octavo_loadtest.load import Load
from octavo_loadtest.text import Calibration, Segment, render
from octavo_loadtest.workloads import Ask, Shape, Talk, generate, preset

Floats = NDArray[np.float64]
MOST_CLOSED = 30_000
_SPREAD = ("ramp", "step")  # laws whose shape spans all arrivals


@dataclass(frozen=True, slots=True)
class Planned:
    """One request, before its text is made."""

    index: int
    turn: int
    ask: Ask
    prompt_tokens: int  # with the history
    cached_tokens: int  # shared with earlier requests, in an unlimited cache


@dataclass(frozen=True, slots=True)
class PlannedSession:
    name: str
    at: float
    requests: tuple[Planned, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be sent."""

    load: Load
    arrivals: laws.Arrivals
    sessions: tuple[PlannedSession, ...]

    @property
    def requests(self) -> int:
        return sum(len(session.requests) for session in self.sessions)

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.sessions[-1].at - self.sessions[0].at


def make(load: Load) -> Plan:
    """Plan a load.

    Raises:
        LoadTestError: the workload, the arrivals and the limits contradict each other.
    """
    rng, rng_times = (np.random.default_rng(seed) for seed in np.random.SeedSequence(load.seed).spawn(2))
    law = arrivals_of(load)
    talks = list(_talks(load, law, rng))
    if not talks:
        raise LoadTestError(f"the workload {load.workload} has no request for this load; raise duration or requests")
    if law.name == "replay":  # a trace may be sorted by something else; who waits for a later one would send late
        talks.sort(key=lambda talk: talk.at or 0.0)
    at = _times(load, law, talks, rng_times)
    talks = talks[: len(at)]
    return Plan(load, law, tuple(_number(talks, at, load.limit)))


def arrivals_of(load: Load) -> laws.Arrivals:
    """The load's arrival law, or its workload's own: a file with times is replayed, and `concurrency` alone means a
    closed loop."""
    if load.arrivals:
        law = laws.parse(load.arrivals)
    elif load.concurrency:
        law = laws.Arrivals("closed")
    elif Path(load.workload).suffix:
        first = next(read(Path(load.workload), Shape()), None)
        law = laws.Arrivals("replay" if first is not None and first.at is not None else "poisson")
    else:
        law = laws.parse(preset(load.workload)["arrivals"])
    if law.name == "closed" and not load.concurrency:
        raise LoadTestError("a closed loop needs a concurrency above 0")
    return law


def _talks(load: Load, law: laws.Arrivals, rng: np.random.Generator) -> Iterator[Talk]:
    shape = Shape(load.scale, load.max_tokens, load.think)
    if Path(load.workload).suffix:
        source = read(Path(load.workload), shape)
    else:
        source = generate(load.workload, rng, shape, load.rate)
    timed = law.name in ("replay", "workload")
    planned = 0
    bound = load.limit if load.requests or timed else _expected(load, law)
    for talk in source:
        if planned >= bound or (timed and load.duration and (talk.at or 0.0) * load.time_scale > load.duration):
            return
        planned += len(talk.asks)
        yield talk


def _expected(load: Load, law: laws.Arrivals) -> int:
    """An upper bound on the sessions of a duration, bursts included; of a closed loop, where a request takes no less
    than 50 ms, and no more than can be planned in some seconds: a plan that is used up ends a run early."""
    if not load.duration:
        return load.limit
    if law.closed:
        return min(MOST_CLOSED, int((load.concurrency or 16) * load.duration * 20) + 1000)
    return min(load.limit, int(load.rate * load.duration * 2) + 1000)


def _times(load: Load, law: laws.Arrivals, talks: list[Talk], rng: np.random.Generator) -> Floats:
    if law.closed:
        return np.zeros(len(talks))
    if law.name in ("replay", "workload"):
        if any(talk.at is None for talk in talks):
            raise LoadTestError(f"the workload {load.workload} brings no times of its own; choose other arrivals")
        at = np.array([talk.at for talk in talks]) * (load.time_scale if law.name == "replay" else 1.0)
        return at - at[0] if law.name == "replay" else at
    if load.duration and law.name in _SPREAD:
        return laws.times(law, min(len(talks), max(1, round(load.rate * load.duration))), load.rate, rng)
    at = laws.times(law, len(talks), load.rate, rng)
    return at[: max(1, int(np.searchsorted(at, load.duration)))] if load.duration else at


def _number(talks: list[Talk], at: Floats, limit: int) -> Iterator[PlannedSession]:
    seen = Seen()
    index = 0
    for talk, start in zip(talks, at.tolist(), strict=True):
        requests = []
        history: tuple[Segment, ...] = ()
        for turn, ask in enumerate(islice(talk.asks, limit - index)):
            prompt = (*history, *ask.segments)
            length = sum(segment.tokens for segment in prompt)
            requests.append(Planned(index, turn, ask, length, seen.add(prompt)))
            answer = Segment(f"{talk.name}.answer{turn}", ask.output_tokens)
            history = (*prompt, answer)
            seen.add(history)
            index += 1
        if requests:
            yield PlannedSession(talk.name, start, tuple(requests))


class Seen:
    """All prompts so far as a tree of segments, which is the content of an unlimited prefix cache."""

    def __init__(self) -> None:
        self._longest: dict[tuple[int, str], int] = {}  # (node, key) -> tokens of the longest passage there

    def add(self, prompt: tuple[Segment, ...]) -> int:
        """Add a prompt; returns how many of its leading tokens the tree held already."""
        node, shared, together = 0, 0, True
        for segment in prompt:
            place = (node, segment.key)
            known = self._longest.get(place, 0)
            shared += min(known, segment.tokens) if together else 0
            together = together and known >= segment.tokens
            self._longest[place] = max(known, segment.tokens)
            node = hash((node, segment.key, segment.tokens))
        return shared


def sessions(plan: Plan, salt: str, calibration: Calibration) -> list[Session]:
    """The plan as text."""
    return [_session(session, salt, calibration) for session in plan.sessions]


def _session(session: PlannedSession, salt: str, calibration: Calibration) -> Session:
    turns = tuple(
        Turn(
            request.index,
            render(request.ask.segments, salt, calibration, first=request.turn == 0),
            request.ask.output_tokens,
            request.ask.think,
            request.prompt_tokens,
            request.cached_tokens,
        )
        for request in session.requests
    )
    return Session(session.name, session.at, turns)


def reseed(load: Load, repeat: int) -> Load:
    """The same load with a fresh seed."""
    return replace(load, seed=load.seed + 7919 * repeat)


def save(plan: Plan, path: Path) -> None:
    """Write the schedule, one request a line: enough to send the same load again with any client."""
    with path.open("w") as file:
        for session in plan.sessions:
            for request in session.requests:
                row = {
                    "index": request.index,
                    "session": session.name,
                    "turn": request.turn,
                    "at": session.at if request.turn == 0 else None,
                    "think": request.ask.think,
                    "segments": [[segment.key, segment.tokens] for segment in request.ask.segments],
                    "prompt_tokens": request.prompt_tokens,
                    "cached_tokens": request.cached_tokens,
                    "output_tokens": request.ask.output_tokens,
                }
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
