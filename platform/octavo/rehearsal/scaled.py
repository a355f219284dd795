"""What would have become of recorded traffic under the autoscaler: it decides in simulated time, as it does in Serve.

Shards report what `LoadMeter` makes of their counters, the policy decides ten times a second, and what it asks for
comes `start_seconds` later. A shard that is not wanted any more gets no further request, and goes once it has none.
"""

from __future__ import annotations

import dataclasses
from statistics import median
from typing import Any, NamedTuple

from octavo.config import EngineConfig, unknown_key
from octavo.engine.load_meter import LoadMeter
from octavo.errors import ConfigError
from octavo.rehearsal.traffic import Machine, Traffic
from octavo.rehearsal.whatif import Rerun
from octavo.routing.router import RoutingConfig
from octavo.scaling.policy import ScalingState, ShardLoad, Targets, decide

REPORT_SECONDS, DECIDE_SECONDS = 0.5, 0.1
"""Between two reports of a shard, and between two decisions, as in Serve."""

START = "start_seconds"
DIVIDES = "utilization", "drain_within", "kv_utilization"
TARGETS = [field.name for field in dataclasses.fields(Targets)]


class Scaling(NamedTuple):
    """How shards come and go.

    Attributes:
        least, most: there may be.
        start_seconds: from when one is asked for until it serves.
    """

    least: int
    most: int
    targets: Targets
    start_seconds: float


def scaling_of(traffic: Traffic, least: int, most: int, settings: dict[str, Any]) -> Scaling:
    """As it was recorded, with some settings changed.

    Args:
        settings: fields of `Targets`, or START.

    Raises:
        ConfigError: one is wrong, or how long a start takes is not known.
    """
    for name, value in settings.items():
        if name not in (START, *TARGETS):
            raise ConfigError(unknown_key(name, [START, *TARGETS]))
        above = name in DIVIDES
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0 or (above and not value):
            raise ConfigError(
                f"--set {name} must be a number {'above' if above else 'of at least'} 0, got {value!r:.80}"
            )
    own = dict(settings)
    seconds = own.pop(START, median(traffic.starts) if traffic.starts else None)
    if seconds is None:
        raise ConfigError(f"how long a shard takes to start is not in the recording: say --set {START}=SECONDS")
    targets = dataclasses.replace(traffic.targets or Targets(), **own)
    if least and "zero_after" not in own:  # nothing goes to zero, so nothing is to hasten what down_after says
        targets = dataclasses.replace(targets, zero_after=float("inf"))
    return Scaling(least, most, targets, float(seconds))


class ScaledRerun(Rerun):
    """Recorded traffic in simulated time, on as many shards as the autoscaler wants.

    Attributes:
        asked: shards that are there or start; of those that are there, `leaving` get nothing any more.
    """

    def __init__(self, traffic: Traffic, config: EngineConfig, routing: RoutingConfig, scaling: Scaling) -> None:
        start = traffic.told[0].came
        there = sum(machine.since <= start for machine in traffic.machines)
        self.asked = max(scaling.least, min(scaling.most, there))
        self._scaling, self._state = scaling, ScalingState()
        self._machines, self._made = traffic.machines, self.asked
        self._meters: dict[str, LoadMeter] = {}
        self._reports: dict[str, tuple[float, ShardLoad]] = {}
        self._left = len(traffic.told)
        super().__init__(traffic, config, routing, self.asked)
        self.at(0.0, self._scale)

    def _begin(self, name: str, machine: Machine) -> None:
        self._meters[name] = LoadMeter(self.config)
        super()._begin(name, machine)

    def _ended(self, name: str) -> None:
        self._left -= 1
        super()._ended(name)

    def _scale(self) -> None:
        """Decide, and come again while there is anything to decide for."""
        for name in [name for name in self.leaving if not self._at[name]]:
            self._go(name)
        serving = [name for name in self.shards if name not in self.leaving]
        scaling, now = self._scaling, self.now
        decision = decide(
            [self._load(name) for name in serving], now=now, running=len(serving), target=self.asked,
            held=len(self._held), targets=scaling.targets, state=self._state,
        )  # fmt: skip
        self._state = decision.state
        wanted = min(max(decision.replicas, scaling.least), scaling.most)
        for _ in range(wanted - self.asked):
            self._ask_for_one()
        for name in serving[::-1][: max(0, self.asked - wanted)]:  # the newest go first
            self.leaving.add(name)
        self.asked = wanted
        if self._left:
            self.at(now + DECIDE_SECONDS, self._scale)

    def _load(self, name: str) -> ShardLoad:
        """A shard's latest report."""
        at, load = self._reports.get(name, (-1.0, None))
        if load is None or self.now - at >= REPORT_SECONDS - 1e-9:
            at, load = self.now, self._meters[name].measure(self.shards[name].engine.stats(), self.now)
            self._reports[name] = at, load
        return dataclasses.replace(load, age=self.now - at)

    def _ask_for_one(self) -> None:
        name, machine = f"shard{self._made}", self._machines[self._made % len(self._machines)]
        self._made += 1
        self.at(self.now + self._scaling.start_seconds, lambda: self._begin(name, machine))

    def _go(self, name: str) -> None:
        """A shard that has nothing to do any more goes."""
        self.leaving.discard(name)
        self._lose(name)
