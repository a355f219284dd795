"""Workloads: fitted generators of sessions. Their numbers and where they come from are in presets.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import count as counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_loadtest import arrivals
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.laws import draw
from octavo_loadtest.text import Segment

Generator = np.random.Generator
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn as a workload gives it."""

    segments: tuple[Segment, ...]  # what is new in this turn
    output_tokens: int
    think: float = 0.0  # s after the answer before it


@dataclass(frozen=True, slots=True)
class Talk:
    """A session as a workload gives it; most have one turn."""

    name: str
    asks: tuple[Ask, ...]
    at: float | None = None  # s, where the workload brings its own times


@dataclass(frozen=True, slots=True)
class Shape:
    """How the original is changed to fit a smaller model or a shorter test."""

    scale: float = 1.0  # of all lengths
    max_tokens: int = 0  # prompt and answer together, with the history; 0: no limit
    think: float = 1.0  # of think times

    def length(self, tokens: float) -> int:
        return max(1, round(tokens * self.scale))


@cache
def table() -> dict[str, Any]:
    """presets.json."""
    found: dict[str, Any] = json.loads(resources.files("octavo_loadtest").joinpath("presets.json").read_text())
    return found


def presets() -> dict[str, dict[str, Any]]:
    """The presets by name."""
    return {name: preset for name, preset in table().items() if name != "levels"}


def preset(name: str) -> dict[str, Any]:
    """The numbers of one preset, with its `about`, `source` and default `arrivals`.

    Raises:
        LoadTestError: no such preset.
    """
    try:
        return presets()[name]
    except KeyError:
        raise LoadTestError(f"no workload called {name!r}; there are {', '.join(presets())}, or name a file") from None


def generate(name: str, rng: Generator, shape: Shape, rate: float = 1.0) -> Iterator[Talk]:
    """Sessions of a preset without end; `rate` (1/s) matters only to workloads that bring their own times."""
    numbers = preset(name)
    builders: dict[str, Callable[..., Iterator[Talk]]] = {
        "turns": _conversations,
        "extends": _tree,
        "clients": _clients,
        "prefixes": _shared,
    }
    build = next((builders[key] for key in builders if key in numbers), _single)
    for talk in build(numbers, rng, shape, rate):
        yield fit(talk, shape.max_tokens)


def fit(talk: Talk, limit: int) -> Talk:
    """Cut a session to a context of `limit` tokens: later turns are dropped, a prompt too long is shortened."""
    if not limit:
        return talk
    asks: list[Ask] = []
    used = 0
    for ask in talk.asks:
        wanted = sum(segment.tokens for segment in ask.segments) + ask.output_tokens
        if used + wanted > limit and asks:
            break
        ask = _shorten(ask, limit) if used + wanted > limit else ask
        used += wanted
        asks.append(ask)
    return replace(talk, asks=tuple(asks))


def _shorten(ask: Ask, limit: int) -> Ask:
    output = min(ask.output_tokens, max(1, limit // 2))
    room = limit - output
    kept = []
    for segment in ask.segments:
        tokens = min(segment.tokens, room)
        if tokens > 0:
            text = segment.text[: len(segment.text) * tokens // segment.tokens]
            kept.append(replace(segment, tokens=tokens, text=text))
        room -= tokens
    return replace(ask, segments=tuple(kept), output_tokens=output)


# ---- generators ---------------------------------------------------------------------------------------------------


def _drawn(law: dict[str, Any], rng: Generator, block: int = 256) -> Iterator[float]:
    """Values of a law one by one (drawn in blocks: a call for each costs 20 us)."""
    levels = np.array(table()["levels"])
    while True:
        yield from draw(law, levels, block, rng).tolist()


def _single(numbers: dict[str, Any], rng: Generator, shape: Shape, rate: float) -> Iterator[Talk]:
    prompts, outputs = _drawn(numbers["first"], rng), _drawn(numbers["output"], rng)
    for i in counter():
        own = Segment(f"s{i}", shape.length(next(prompts)))
        yield Talk(f"s{i}", (Ask((own,), shape.length(next(outputs))),))


def _conversations(numbers: dict[str, Any], rng: Generator, shape: Shape, rate: float) -> Iterator[Talk]:
    laws = {key: _drawn(numbers[key], rng) for key in ("turns", "first", "later", "output", "think")}
    for i in counter():
        asks = []
        for turn in range(max(1, round(next(laws["turns"])))):
            tokens = shape.length(next(laws["later" if turn else "first"]))
            think = next(laws["think"]) * shape.think if turn else 0.0
            asks.append(Ask((Segment(f"s{i}.{turn}", tokens),), shape.length(next(laws["output"])), think))
        yield Talk(f"s{i}", tuple(asks))


def _shared(numbers: dict[str, Any], rng: Generator, shape: Shape, rate: float) -> Iterator[Talk]:
    prefixes = [Segment(f"prefix{i}", shape.length(tokens)) for i, tokens in enumerate(numbers["prefixes"])]
    weights = np.arange(1, len(prefixes) + 1) ** -float(numbers.get("zipf", 0.0))
    tails, outputs = _drawn(numbers["first"], rng), _drawn(numbers["output"], rng)
    for i in counter():
        prefix = prefixes[int(rng.choice(len(prefixes), p=weights / weights.sum()))]
        own = Segment(f"s{i}", shape.length(next(tails)))
        yield Talk(f"s{i}", (Ask((prefix, own), shape.length(next(outputs))),))


def _tree(numbers: dict[str, Any], rng: Generator, shape: Shape, rate: float) -> Iterator[Talk]:
    """Requests of one turn over a growing tree: each begins with the system block or with a whole earlier prompt.

    Lengths follow the table: an extension is drawn on to one of the last 256 prompts that are shorter than its length.
    """
    system = Segment("system", shape.length(numbers["system"]))
    lengths, outputs = _drawn(numbers["first"], rng), _drawn(numbers["output"], rng)
    grown = _drawn(numbers["extension"], rng)
    recent: list[tuple[Segment, ...]] = []
    for i in counter():
        length = shape.length(next(lengths))
        start: tuple[Segment, ...] = (system,)
        if recent and rng.random() < numbers["extends"]:
            start = _closest(recent, length - shape.length(next(grown))) or start
        rest = length - _tokens(start)
        segments = (*start, Segment(f"s{i}", rest)) if rest > 0 else (replace(start[0], tokens=length),)
        recent = [*recent[-255:], segments]
        yield Talk(f"s{i}", (Ask(segments, shape.length(next(outputs))),))


def _tokens(segments: tuple[Segment, ...]) -> int:
    return sum(segment.tokens for segment in segments)


def _closest(prompts: list[tuple[Segment, ...]], length: int) -> tuple[Segment, ...] | None:
    """The longest prompt that is not longer than `length`."""
    fitting = [prompt for prompt in prompts if _tokens(prompt) <= length]
    return max(fitting, key=_tokens, default=None)


def _clients(numbers: dict[str, Any], rng: Generator, shape: Shape, rate: float) -> Iterator[Talk]:
    """Each client is a gamma renewal process with its own rate, burstiness, system prompt and length law."""
    clients = numbers["clients"]
    shares = np.arange(1, clients + 1) ** -float(numbers["slope"])
    shares /= shares.sum()
    laws = {key: _drawn(numbers[key], rng) for key in ("cv", "system", "client-median", "output")}
    cvs = [next(laws["cv"]) for _ in range(clients)]
    systems = [Segment(f"client{c}", shape.length(next(laws["system"]))) for c in range(clients)]
    medians = [next(laws["client-median"]) for _ in range(clients)]
    due = [_renewals(rate * share, cv, rng) for share, cv in zip(shares, cvs, strict=True)]
    upcoming = np.array([next(times) for times in due])
    for i in counter():
        c = int(upcoming.argmin())
        at = float(upcoming[c])
        upcoming[c] = next(due[c])
        own = Segment(f"s{i}", shape.length(rng.lognormal(np.log(medians[c]), numbers["within"])))
        yield Talk(f"s{i}", (Ask((systems[c], own), shape.length(next(laws["output"]))),), at)


def _renewals(rate: float, cv: float, rng: Generator, block: int = 64) -> Iterator[float]:
    start = rng.uniform(0, 1) / rate  # a client is met in the middle of a gap
    while True:
        for gap in arrivals.gamma(block, rate, rng, cv).tolist():
            yield start + gap
            last = start + gap
        start = last
