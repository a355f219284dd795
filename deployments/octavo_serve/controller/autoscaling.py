"""Adapts `octavo.scaling`, which works on plain numbers, to Ray Serve's autoscaling.

Serve pickles this module into its controller and calls the policy in its control loop, up to ten times a second, so
nothing here may block.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

from ray.serve.config import AutoscalingContext

from octavo.errors import ConfigError
from octavo.recording import Recorder
from octavo.scaling.policy import ScalingState, ShardLoad, Targets
from octavo.scaling.recorded import Scaled, Seen, begin, decided, scaled
from octavo_serve.config.placement import Group, most_shards
from octavo_serve.controller.journal import Journal
from octavo_serve.controller.nodes import Nodes

POLICY = "octavo_serve.controller.autoscaling:Autoscaler"
REPORT_SECONDS = 0.5
"""Seconds between two reports of a shard; Serve's default of ten seconds is longer than most bursts."""

_STATE = "octavo"


class Autoscaler:
    """Serve's policy for one model.

    Args:
        group: the fields of a shard's `octavo_serve.config.placement.Group`.
        kept: the same for every placement group that other models need at all times; a burst of this model leaves room
            for them.
        record: a folder in which decisions are recorded; None: they are not.
        targets: the fields of `octavo.scaling.policy.Targets`.

    Attributes:
        recorder: what writes them, from the first on.
    """

    def __init__(
        self,
        group: dict[str, Any] | None = None,
        kept: Sequence[dict[str, Any]] = (),
        record: str | None = None,
        **targets: float,
    ) -> None:
        self.record = record
        self.recorder: Recorder | None = None
        self.targets = Targets(**targets)
        self.group = Group(**group) if group else None
        self.kept = [Group(**each) for each in kept]
        self.nodes = Nodes()
        self.journal = Journal()
        self._counted: tuple[object, int] = (None, 0)  # the nodes, and the number of shards that fit on them

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now = context.current_time or 0.0
        seen = Seen(
            shards=loads(context),
            now=now,
            running=context.current_num_replicas,
            target=context.target_num_replicas,
            held=context.total_queued_requests,
            targets=self._targets(context),
            state=context.policy_state.get(_STATE, ScalingState()),
        )
        decision = decided(seen)
        if self.record is not None:
            self._note(scaled(seen, decision), context.deployment_name)
        room = self._room(now)
        allowed = decision.replicas if room is None else min(decision.replicas, room)
        wanted = min(max(allowed, context.capacity_adjusted_min_replicas),
                     context.capacity_adjusted_max_replicas)  # fmt: skip
        if wanted != context.target_num_replicas:
            logging.getLogger("ray.serve").info(
                "%s: %d -> %d shards (%s; demand is %.2f shards)",
                context.deployment_name, context.target_num_replicas, wanted, decision.reason, decision.demand,
            )  # fmt: skip
        where = context.app_name or "", context.deployment_name
        self.journal.add(where, now, context.target_num_replicas, wanted, context.current_num_replicas, decision)
        return allowed, {_STATE: decision.state}

    def _note(self, frame: Scaled, deployment: str) -> None:
        """Write a decision down; where that is impossible, the shards are scaled all the same."""
        try:
            if self.recorder is None:
                self.recorder = begin(f"{self.record}/{deployment}", deployment)
            self.recorder.write(frame)
        except ConfigError as error:
            logging.getLogger("ray.serve").warning("The autoscaler's decisions are not recorded: %s", error)
            self.record = None

    def _targets(self, context: AutoscalingContext) -> Targets:
        """With a lower bound nothing goes to zero: `zero_after` must not hasten what `down_after` says."""
        lowest = context.capacity_adjusted_min_replicas
        return dataclasses.replace(self.targets, zero_after=math.inf) if lowest else self.targets

    def _room(self, now: float) -> int | None:
        """Shards that fit on the cluster beside the `kept` groups; None if the nodes are not known."""
        if self.group is None or (nodes := self.nodes.latest(now)) is None:
            return None
        if self._counted[0] is not nodes:
            self._counted = nodes, most_shards(self.group, self.kept, nodes)
        return self._counted[1]


def loads(context: AutoscalingContext) -> list[ShardLoad]:
    """The shards' latest reports, without shards that have not reported yet."""
    now = context.current_time or 0.0
    metrics = context.raw_metrics or {}
    names = [field.name for field in dataclasses.fields(ShardLoad) if field.name != "age"]
    if not all(name in metrics for name in names):
        return []
    found = []
    for replica in metrics[names[0]]:
        series = {name: metrics[name].get(replica) for name in names}
        if all(series.values()):
            latest = {name: points[-1] for name, points in series.items() if points}
            values = {name: point.value for name, point in latest.items()}
            found.append(ShardLoad(**values, age=now - latest[names[0]].timestamp))
    return found
