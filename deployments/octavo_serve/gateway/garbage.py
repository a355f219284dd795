"""When a gateway looks for cyclic garbage: not while many requests wait.

A full collection visits what every list holds, so also each token of the prompts that wait: with 1,900 prompts of 7,000
tokens it held the event loop for 216 ms, and Python starts one whenever a quarter more is there. Here the two younger
generations are collected as usual, which finds nearly all garbage, and the oldest one where little runs or it is late.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

LOOK_SECONDS = 5.0
FEW = 32
"""Requests that add at most a few milliseconds to a collection."""
SHORTEST_SECONDS, LONGEST_SECONDS = 60.0, 1800.0
"""Between two collections: where few requests run, and whatever runs. Old garbage in cycles is rare, but must end."""
_NEVER = 2**30


def is_due(running: int, since: float) -> bool:
    """Whether to collect now.

    Args:
        running: requests that run or wait.
        since: seconds since the last time.
    """
    return since >= (SHORTEST_SECONDS if running <= FEW else LONGEST_SECONDS)


async def collect(running: Callable[[], int], look_seconds: float = LOOK_SECONDS) -> None:
    """Collect when that is due, for ever, instead of when Python would.

    Args:
        running: how many requests run or wait now.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    last = time.monotonic()
    while True:
        await asyncio.sleep(look_seconds)
        if is_due(running(), time.monotonic() - last):
            gc.collect()
            last = time.monotonic()
