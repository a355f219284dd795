"""How the start of a shard was spent: the floor under every burst and every first request after zero."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ray.serve import metrics

from octavo_serve import IMPORTED_AT

LONGEST_IMPORTS = 5.0
"""Seconds; a process that has our modules for longer was kept ready (`shard.warm`): nobody waited for it."""


class StartUp:
    """Phases of a shard's start, in seconds, in order: "process" (Ray's worker), "imports", then those of `done`."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        imports = self._last - IMPORTED_AT
        self.warm = imports > LONGEST_IMPORTS
        process = max(0.0, IMPORTED_AT - process_start())
        self.phases = {} if self.warm else {"process": process, "imports": imports}

    def done(self, phase: str) -> None:
        """A phase ends now; the next one begins."""
        now = time.monotonic()
        self.phases[phase] = now - self._last
        self._last = now

    def publish(self, shard: str, engine: object) -> None:
        """Say it: the gauge `octavo_shard_start_seconds` among Ray's metrics, and lines that `octavo serve` shows.

        They go past `sys.stderr`, which is Serve's log in a replica: it keeps lines until a thousand others have come.
        """
        gauge = metrics.Gauge(
            "octavo_shard_start_seconds", description="Seconds of a shard's start, by phase.", tag_keys=("phase",)
        )
        for phase, seconds in self.phases.items():
            gauge.set(seconds, tags={"phase": phase})
        os.write(2, f"Engine ready: {engine}\nShard ready: {shard}: {self}\n".encode())

    def __str__(self) -> str:
        spent = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in self.phases.items())
        since = "in a process that was ready" if self.warm else "after its process began"
        return f"{sum(self.phases.values()):.2f} s {since} ({spent})"


def process_start() -> float:
    """When this process began, on the monotonic clock; where there is no /proc, now."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return time.monotonic()
    return since_boot - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())
