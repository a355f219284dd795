"""Cuts long work on an event loop into short slices, so that other tasks run in between."""

from __future__ import annotations

import asyncio
import time

SLICE = 0.002
"""Seconds of work after which other tasks get a turn."""

PIECES = 32
"""Most pieces of a stream written in one turn. A piece takes 20 to 50 us; counting them is far cheaper than timing."""


class Turns:
    """Measures how long the loop has been held, from its creation and again after each turn of other tasks."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def over(self) -> bool:
        """Whether other tasks should get a turn now; takes 0.1 us."""
        return time.perf_counter() - self._since > SLICE

    async def pause(self) -> None:
        """Let other tasks run."""
        await asyncio.sleep(0)
        self._since = time.perf_counter()
