"""Long work on an event loop in short slices, so that everybody else has a turn in between."""

from __future__ import annotations

import asyncio
import time

SLICE = 0.002
"""Seconds of work after which the others have their turn."""

PIECES = 32
"""Pieces of a stream that are written in one turn: at 20 to 50 us each, far cheaper to count than to time."""


class Turns:
    """Tells how long the loop has been held; begins when it is made, and again after each turn of the others."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def over(self) -> bool:
        """Whether it is the others' turn; 0.1 us."""
        return time.perf_counter() - self._since > SLICE

    async def pause(self) -> None:
        """Let the others have theirs."""
        await asyncio.sleep(0)
        self._since = time.perf_counter()
