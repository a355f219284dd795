"""Measures the phases of a shard's start: it bounds the reaction to a burst, and the first answer after scaling to
zero."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray.serve import metrics

from octavo_serve import IMPORTED_AT

LONGEST_IMPORTS = 5.0
"""Seconds. A process that imported our modules longer ago was kept warm (`shard.warm`): its start delayed nobody."""


class StartUp:
    """Phases of a shard's start, in seconds, in order: "process" (Ray's worker), "imports", then those of `done`."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        imports = self._last - IMPORTED_AT
        self.warm = imports > LONGEST_IMPORTS
        process = max(0.0, IMPORTED_AT - process_start())
        self.phases = {} if self.warm else {"process": process, "imports": imports}

    def done(self, phase: str) -> None:
        """End a phase; the next one begins."""
        now = time.monotonic()
        self.phases[phase] = now - self._last
        self._last = now

    def publish(self, model: str, engine: object) -> None:
        """Publish the phases: the gauge `octavo_shard_start_seconds` in Ray's metrics, and log lines for `octavo
        serve` (`octavo_serve.command.ready` reads them).

        The lines bypass `sys.stderr`: in a replica it is Serve's log, which holds lines back until there are a
        thousand.
        """
        gauge = metrics.Gauge(
            "octavo_shard_start_seconds", description="Seconds of a shard's start, by phase.", tag_keys=("phase",)
        )
        for phase, seconds in self.phases.items():
            gauge.set(seconds, tags={"phase": phase})
        name = model if model.isprintable() else repr(model)
        os.write(2, f"Engine ready: {name}: {engine}\nShard ready: {name}: {self}\n".encode(errors="replace"))

    def as_metadata(self) -> dict[str, Any]:
        """For gateways: the phases, and whether they began in a process that was ready."""
        return {"phases": {phase: round(seconds, 2) for phase, seconds in self.phases.items()}, "warm": self.warm}

    def __str__(self) -> str:
        spent = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in self.phases.items())
        since = "in a process that was ready" if self.warm else "after its process began"
        return f"{sum(self.phases.values()):.2f} s {since} ({spent})"


def process_start() -> float:
    """Start time of this process on the monotonic clock; without /proc, the present time."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return time.monotonic()
    return since_boot - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())
