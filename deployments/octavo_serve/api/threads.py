"""A few threads for what would hold up the event loop: large bodies, long texts, slow templates, large answers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from octavo.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 4
MAX_WAITING = 256
"""A text as long as a context of 8,192 tokens takes 5 to 20 ms: five seconds of work for one thread."""


class Threads:
    """Runs functions in threads, up to a limit.

    Args:
        threads: at once; they are started when there is something to do.
        waiting: functions that may run or wait; one more is refused.
    """

    def __init__(self, threads: int = min(MAX_THREADS, os.cpu_count() or 1), waiting: int = MAX_WAITING) -> None:
        self._pool = ThreadPoolExecutor(threads, "octavo-text")
        self._most = waiting
        self._places = threading.BoundedSemaphore(waiting)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns; a caller that is cancelled takes back what has not begun.

        Raises:
            Overloaded: too many wait already.
        """
        if not self._places.acquire(blocking=False):
            raise Overloaded(
                f"{self._most} large requests wait to be read here already; try again later", retry_after=1.0
            )
        future = self._pool.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    async def finish(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for the end of a request that has its answer: it is never refused."""
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))
