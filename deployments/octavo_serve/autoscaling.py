"""The adapter between Ray Serve's autoscaling and `octavo.scaling`: Ray's context there, plain numbers here.

Serve pickles this module into its controller and calls the policy in the control loop, ten times a second: nothing here
may wait for anything.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from ray.serve.config import AutoscalingContext

from octavo.scaling.policy import ShardLoad, State, Targets, decide

POLICY = "octavo_serve.autoscaling:Autoscaler"
REPORT_SECONDS = 0.5
"""How often shards report; Serve's own default of ten seconds is longer than most bursts."""

_STATE = "octavo"


class Autoscaler:
    """Serve's policy for one model; `targets` are the fields of `octavo.scaling.policy.Targets`."""

    def __init__(self, **targets: float) -> None:
        self.targets = Targets(**targets)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        decision = decide(
            loads(context),
            now=context.current_time or 0.0,
            running=context.current_num_replicas,
            target=context.target_num_replicas,
            held=context.total_queued_requests,
            targets=self.targets,
            state=context.policy_state.get(_STATE, State()),
        )
        wanted = min(max(decision.replicas, context.capacity_adjusted_min_replicas),
                     context.capacity_adjusted_max_replicas)  # fmt: skip
        if wanted != context.target_num_replicas:
            logging.getLogger("ray.serve").info(
                "%s: %d -> %d shards (%s; demand is %.2f shards)",
                context.deployment_name, context.target_num_replicas, wanted, decision.reason, decision.demand,
            )  # fmt: skip
        return decision.replicas, {_STATE: decision.state}


def loads(context: AutoscalingContext) -> list[ShardLoad]:
    """The shards' latest reports; one that has not reported yet is left out."""
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
