"""A gateway that has more to do than its process can: the one queue that no shard knows of.

Requests that have come wait for the event loop. How late it is says how many, and is looked at before one is accepted:
refusing costs a tenth of taking.
"""

from __future__ import annotations

import asyncio

from octavo.errors import Overloaded

PERIOD = 0.05
"""Seconds between two looks."""
WEIGHT = 0.1
"""Of a look in the average: one that finds the loop held for a second changes nothing."""
LONGEST = 1.0
"""Seconds of lateness that one look counts at most: a process that was stopped for 15 s has no more to do for it."""
LATE = 0.3
"""Seconds by which the loop may be late on average."""
SPARE = 0.001, 0.005
"""Seconds of lateness up to which there is time to spare, and from which on there is none: what people feel is more."""
AGAIN = 1.0
"""Seconds after which a refused client may try again: the excess is gone as soon as fewer come."""


class Lateness:
    """How late a gateway's event loop is.

    Attributes:
        seconds: of late, on average.
        refused: requests, since the start.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.refused = 0

    async def watch(self) -> None:
        """Look for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PERIOD
            await asyncio.sleep(PERIOD)
            self.seconds += WEIGHT * (min(loop.time() - due, LONGEST) - self.seconds)

    def spare(self, most: int) -> int:
        """How much of what nobody waits for may be under way: all while the loop is in time, one where it is late."""
        part = min(1.0, max(0.0, (SPARE[1] - self.seconds) / (SPARE[1] - SPARE[0])))
        return max(min(1, most), int(part * most))

    def check(self) -> None:
        """Refuse a request that has just come, where there is too much to do.

        Raises:
            Overloaded: there is.
        """
        if self.seconds > LATE:
            self.refused += 1
            raise Overloaded("more requests come than this gateway can read: try again later", AGAIN)
