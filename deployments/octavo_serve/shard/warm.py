"""Worker processes kept ready for shards to come.

Until Ray's process runs and has imported what Serve and a shard need, 1.9 s of 2.3 s are over in the start of a small
shard, and Ray starts only as many processes at once as there are CPUs. A process that waits takes 0.1 s instead, for
memory alone. `octavo serve` tells Ray to import shards' modules when a process starts, not when a shard needs them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

from octavo_serve.ray_private import Raylet, session_folder

logger = logging.getLogger("ray.serve")

PERIOD = 3.0
"""Seconds between two looks, and between two processes: one that starts takes a core for 1.3 s."""

KEEP_SECONDS = 900
"""Ray ends processes that have been idle for a second; those asked for live so long, and are then asked for anew."""


def keep_warm(processes: int) -> None:
    """Keep so many idle worker processes on this node from now on; one shard per node does it, while it lives."""
    if processes:
        threading.Thread(target=_keep, args=(processes,), name="octavo-warm", daemon=True).start()


def _keep(processes: int) -> None:
    raylet = os.getppid()
    if not is_raylet(raylet):
        logger.info("No processes are kept warm: this one was not started by Ray's node itself, or there is no /proc")
        return
    with contextlib.suppress(OSError), Path(session_folder(), f"octavo-warm-{raylet}").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # until the shard that had it ends
        with contextlib.closing(Raylet()) as asked:
            while True:
                time.sleep(PERIOD)
                try:
                    if idle_workers(raylet) < processes:
                        asked.prestart_worker(KEEP_SECONDS, timeout=PERIOD)
                except Exception as error:  # another version of Ray, or one that asks who we are
                    logger.info("No processes are kept warm: %s", error)
                    return


def is_raylet(pid: int) -> bool:
    """Whether a process is a Ray node whose workers can be counted: else there would never be enough of them."""
    return _command(pid).partition(b"\0")[0].endswith(b"/raylet") and bool(_children(pid))


def idle_workers(raylet: int) -> int:
    """Idle worker processes of a raylet (Linux)."""
    return sum(_command(pid).startswith(b"ray::IDLE") for pid in _children(raylet))


def _children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
