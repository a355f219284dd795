"""Keeps worker processes ready for future shards.

A small shard takes 2.3 s to start, of which the start of Ray's process and its imports take 1.9 s; Ray starts at most
one process per CPU at a time. A process that was started before reduces the 1.9 s to 0.1 s, and costs only memory.
`octavo serve` makes Ray import the shards' modules when a process starts, not when a shard needs them.
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
"""Seconds between two checks, and between two starts: a starting process uses a core for 1.3 s."""

KEEP_SECONDS = 900
"""Seconds for which Ray keeps these processes while they are idle, instead of one second; then they are requested
again."""


def keep_warm(processes: int) -> None:
    """Keep this many idle worker processes on this node from now on. One shard per node does so, as long as it
    lives."""
    if processes:
        threading.Thread(target=_keep, args=(processes,), name="octavo-warm", daemon=True).start()


def _keep(processes: int) -> None:
    raylet = os.getppid()
    if not is_raylet(raylet):
        logger.info("No processes are kept warm: this one was not started by Ray's node itself, or there is no /proc")
        return
    with contextlib.suppress(OSError), Path(session_folder(), f"octavo-warm-{raylet}").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # waits until the shard that holds the lock ends
        with contextlib.closing(Raylet()) as asked:
            while True:
                time.sleep(PERIOD)
                try:
                    if idle_workers(raylet) < processes:
                        asked.prestart_worker(KEEP_SECONDS, timeout=PERIOD)
                except Exception as error:  # another version of Ray, or one that requires authentication
                    logger.info("No processes are kept warm: %s", error)
                    return


def is_raylet(pid: int) -> bool:
    """Whether a process is a raylet whose workers can be counted; without a count, workers would be started without
    end."""
    return _command(pid).partition(b"\0")[0].endswith(b"/raylet") and bool(_children(pid))


def idle_workers(raylet: int) -> int:
    """Idle worker processes of a raylet (Linux)."""
    return sum(_command(pid).startswith(b"ray::IDLE") for pid in _children(raylet))


def _children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # the process has just ended
        return b""
