"""What would have become of recorded traffic: the same requests, on other settings, shards or another policy.

Schedulers, block pools, routers and their delays are the real ones, in simulated time (`octavo.rehearsal.fleet`). What
computes is the cost model fitted to each recorded engine's steps, and the seconds that passed between two of them.
Requests come when they came, are as long as they were and have the blocks that they had; a request's sequences all get
as many tokens as its longest, and nothing is guessed. Where nobody says how many shards there are, they come and go as
they did.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.config import EngineConfig
from octavo.cost_model import Cost, CostModel, StepWork
from octavo.engine.engine import Engine
from octavo.errors import ConfigError, Overloaded
from octavo.rehearsal.engine_replay import GUESS, request_of
from octavo.rehearsal.fleet import Fleet
from octavo.rehearsal.simulated import Profile
from octavo.rehearsal.traffic import Machine, Told, Traffic
from octavo.request import Request, SequenceUpdate
from octavo.routing.router import RoutingConfig

SHARES = 50, 90, 99


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to, to count as good; None: anything.

    Attributes:
        ttft: seconds to its first token.
        itl: seconds from one update to the next, on average.
    """

    ttft: float | None = None
    itl: float | None = None

    def is_met(self, told: Told) -> bool:
        """Whether a request does."""
        if told.first is None:
            return False
        late = self.ttft is not None and told.first - told.came > self.ttft
        slow = self.itl is not None and bool(told.gaps) and sum(told.gaps) / len(told.gaps) > self.itl
        return not late and not slow


@dataclass(frozen=True, slots=True)
class Measures:
    """Of a run: percentiles by `SHARES` in seconds; rates per second.

    Attributes:
        unserved: requests that got no token.
        good: share of the requests that met the SLO.
        goodput: how many those are per second.
        shards: that were there, on average; None where nobody knows.
    """

    requests: int
    unserved: int
    ttft: dict[int, float]
    itl: dict[int, float]
    output_tokens: float
    good: float
    goodput: float
    shards: float | None = None


def measures(told: list[Told], slo: Slo, shards: float | None = None) -> Measures:
    """Measure what requests got of so many shards."""
    served = [each for each in told if each.first is not None]
    first = min(each.came for each in told)
    seconds = max(1e-9, max((each.first or each.came) + sum(each.gaps) for each in told) - first)
    good = sum(map(slo.is_met, told))
    waits = [each.first - each.came for each in served if each.first is not None]
    return Measures(
        requests=len(told),
        unserved=len(told) - len(served),
        ttft=_percentiles(waits),
        itl=_percentiles([gap for each in served for gap in each.gaps]),
        output_tokens=sum(sum(each.tokens.values()) for each in told) / seconds,
        good=good / len(told),
        goodput=good / seconds,
        shards=shards,
    )


def _percentiles(values: list[float]) -> dict[int, float]:
    return dict(zip(SHARES, np.percentile(values, SHARES).tolist(), strict=True)) if values else {}


def changed(traffic: Traffic, settings: dict[str, Any]) -> EngineConfig:
    """The recorded engines' settings with some changed.

    Raises:
        ConfigError: one is unknown, wrong, or cannot be changed in a recording.
    """
    config = traffic.machines[0].config
    if settings.get("block_size", config.block_size) != config.block_size:
        raise ConfigError("block_size cannot be another than in the recording, whose hashes are of its blocks")
    if settings.get("enable_prefix_caching") and not config.enable_prefix_caching:
        raise ConfigError("enable_prefix_caching was false, so the recording has no block hashes")
    if "kv_cache_bytes" in settings and config.kv_cache_bytes is None:
        raise ConfigError("kv_cache_bytes is not in the recording, so nobody knows how large a block is")
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return EngineConfig.from_settings(known | settings)


class KnownCost(CostModel):
    """A cost model that has nothing to learn: learning takes as long as all else that a simulated step does."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.num_observed, self._cost = 100, cost

    @property
    def coefficients(self) -> Cost:
        """As of `CostModel`."""
        return self._cost

    def observe(self, work: StepWork, seconds: float) -> None:
        """Nothing is learned."""


class Rerun(Fleet):
    """Recorded traffic in simulated time.

    Args:
        shards: as many, on the recorded machines in turn; None: those that were there, while they were.
    """

    def __init__(self, traffic: Traffic, config: EngineConfig, routing: RoutingConfig, shards: int | None) -> None:
        first = traffic.machines[0]
        profile, own = _profile(first, config), dataclasses.replace(config, kv_cache_bytes=None)  # the profile has it
        super().__init__(profile, 0, own, routing, gateways=traffic.gateways, delay_s=traffic.delay)
        self.capacity = traffic.capacity
        self._told: dict[str, Told] = {}
        self._last: dict[tuple[str, int], float] = {}
        self._held: deque[Request] = deque()
        self._at: Counter[str] = Counter()
        self.leaving: set[str] = set()  # shards that get nothing any more
        self._begun: dict[str, float] = {}
        self._shard_seconds = 0.0
        start = traffic.told[0].came
        if shards is None:
            for machine in traffic.machines:
                self._live(machine, machine.since - start, machine.until - start)
        for number in range(shards or 0):
            self._begin(f"shard{number}", traffic.machines[number % len(traffic.machines)])
        for told in traffic.told:
            self.at(told.came - start, lambda told=told: self._ask(told))  # type: ignore[misc]

    def outcome(self) -> list[Told]:
        """Let all requests end; what they got, from when the first came."""
        self.run()
        return list(self._told.values())

    def shards_on_average(self) -> float:
        """That were there until now."""
        there = sum(self.now - begun for begun in self._begun.values())
        return (self._shard_seconds + there) / max(self.now, 1e-9)

    def _begin(self, name: str, machine: Machine) -> None:
        self._begun[name] = self.now
        cost = machine.cost._replace(step=machine.cost.step + machine.pause)
        self.start(name, cost=cost).engine.scheduler.cost_model = KnownCost(cost)
        self._send_held()

    def _live(self, machine: Machine, since: float, until: float) -> None:
        if since <= 0:
            self._begin(machine.name, machine)
        else:
            self.at(since, lambda: self._begin(machine.name, machine))
        if 0 < until < math.inf:
            self.at(until, lambda: self._lose(machine.name))

    def _lose(self, name: str) -> None:
        """A shard dies, or leaves: what runs there goes on elsewhere."""
        self._shard_seconds += self.now - self._begun.pop(name)
        for request in self.kill(name):
            told, most = self._told[request.request_id], request.params.max_tokens or 0
            if told.tokens:
                request.emitted = [None if told.tokens.get(index, most) >= most else [GUESS] * told.tokens[index]
                                   for index in range(request.params.num_sequences)]  # fmt: skip
            self._held.append(request)
        self._send_held()

    def _ask(self, recorded: Told) -> None:
        request = _request(recorded, self.config.block_size)
        self._told[request.request_id] = dataclasses.replace(recorded, came=self.now, tokens={}, first=None, gaps=[])
        self._held.append(request)
        self._send_held()

    def _send_held(self) -> None:
        """Send those that wait, while a shard has room."""
        while self._held and (names := [name for name in self.shards if self._takes(name)]):
            trip = self.send(self._held.popleft(), names)
            self._at[trip.shard] += 1

    def _takes(self, name: str) -> bool:
        return self._at[name] < self.capacity and name not in self.leaving

    def _add(self, engine: Engine, request: Request) -> None:
        told = self._told[request.request_id]
        try:
            engine.add(request)
        except Overloaded:
            self._ended(request.request_id)
            return
        sequence = engine.scheduler.sequences(request.request_id)[0]
        sequence.chain = list(told.chain)

    def _took(self, update: SequenceUpdate, *, ended: bool) -> None:
        super()._took(update, ended=ended)
        name, count = update.request_id, len(update.token_ids)
        told, key = self._told[name], (name, update.index)
        told.tokens[update.index] = told.tokens.get(update.index, 0) + count
        if count:
            told.first = self.now if told.first is None else told.first
            if (before := self._last.get(key)) is not None:
                told.gaps.append(self.now - before)
            self._last[key] = self.now
        if ended:
            self._ended(name)

    def _ended(self, name: str) -> None:
        trip = self.trips[name]
        trip.finished = self.now  # also where it was refused
        trip.request.prompt_token_ids = []  # an hour of prompts takes gigabytes
        self._at[trip.shard] -= 1
        self._send_held()


def _profile(machine: Machine, config: EngineConfig) -> Profile:
    """A recorded machine, whose blocks hold one byte per token."""
    before, after = machine.config.kv_cache_bytes, config.kv_cache_bytes
    blocks = machine.blocks if before is None or after is None else machine.blocks * after // before
    size = blocks * config.block_size
    return Profile(machine.name, machine.cost, 1, size, machine.limits.max_model_len, (), groups=machine.groups)


def _request(told: Told, block_size: int) -> Request:
    """The request as it came first, to get as many tokens as it got."""
    asked = request_of(told.added)
    params = dataclasses.replace(asked.params, max_tokens=max(told.tokens.values()), ignore_eos=True)
    if params.beams is not None:  # as many sequences as beams, which go on from step to step
        params = dataclasses.replace(params, beams=None, n=params.beams.width)
    chain = told.chain[: len(asked.prompt_token_ids) // block_size]
    return dataclasses.replace(
        asked, params=params, block_hashes=chain, session=told.session, emitted=None, pooling=None, placement=None
    )
