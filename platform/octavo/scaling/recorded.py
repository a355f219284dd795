"""Decisions of the autoscaler, written down with what they were made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from octavo.recording import Frame, Recorder, Write
from octavo.scaling.policy import ScalingDecision, ScalingState, ShardLoad, Targets, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Arguments of `octavo.scaling.policy.decide`."""

    shards: list[ShardLoad]
    now: float
    running: int
    target: int
    held: float
    targets: Targets
    state: ScalingState = field(default_factory=ScalingState)


class Begun(Frame, tag="begun"):
    """The autoscaler of a deployment; its decisions' times are seconds since 1970."""

    name: str
    time: float


class Scaled(Frame, tag="scale"):
    """A decision."""

    seen: Seen
    replicas: int
    reason: str
    demand: float
    state: ScalingState


ScalerFrame = Begun | Scaled


def decided(seen: Seen) -> ScalingDecision:
    """Decide on what was seen."""
    return decide(
        seen.shards, now=seen.now, running=seen.running, target=seen.target, held=seen.held, targets=seen.targets,
        state=seen.state,
    )  # fmt: skip


def scaled(seen: Seen, decision: ScalingDecision) -> Scaled:
    """The frame of a decision."""
    return Scaled(seen, decision.replicas, decision.reason, decision.demand, decision.state)


def begin(folder: str, name: str) -> Recorder:
    """Begin to record a deployment's decisions.

    Raises:
        ConfigError: nothing can be written there.
    """
    recorder = Recorder(folder, "scaler")
    recorder.write(Begun(name, time.time()))
    return recorder


class ScalerReplay:
    """Decides again.

    Args:
        write: takes a frame for each that is applied.
    """

    def __init__(self, begun: Begun, write: Write) -> None:
        self.now = begun.time
        self._write = write

    def apply(self, frame: ScalerFrame) -> None:
        """Do what a frame says was done."""
        if isinstance(frame, Scaled):
            self.now = frame.seen.now
            self._write(scaled(frame.seen, decided(frame.seen)))
