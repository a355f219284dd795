"""A few threads for work that would block the event loop: large bodies, long texts, slow templates, large answers."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from octavo.errors import Overloaded
from octavo.text.grammars.lanes import Lane

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 4
MAX_WAITING = 256
"""Functions that may run or wait. A text of 8,192 tokens takes 5 to 20 ms, so this is up to five seconds of work for
one thread."""


class Threads:
    """Runs functions in a bounded number of threads.

    Args:
        threads: most threads; each is started when it is first needed.
        waiting: most functions that run or wait; one more is refused.
        nice: by how much they stand back behind the process's other threads, where the system can tell them apart.
    """

    def __init__(
        self, threads: int = min(MAX_THREADS, os.cpu_count() or 1), waiting: int = MAX_WAITING, nice: int = 0
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, "octavo-text", _stand_back, (nice,))
        self._most = waiting
        self._places = threading.BoundedSemaphore(waiting)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a thread and return its result. If the caller is cancelled, work that has not begun is dropped.

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
        """The same for what was accepted already, or is the answer of what was: it is never refused."""
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))


class FairThreads:
    """Runs functions in a few threads, in which askers take turns (see `octavo.text.grammars.lanes`).

    Args:
        threads: most threads.
        waiting: most functions that may wait.
        what: those are, for the error.
        nice: as of `Threads`.
    """

    def __init__(self, threads: int, waiting: int, what: str, nice: int = 0) -> None:
        self._lane: Lane[tuple[Future[Any], Callable[[], Any]]] = Lane(
            _work, _refuse, threads=threads, waiting=waiting, what=what, nice=nice
        )

    async def run(self, asker: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a thread when it is the asker's turn; as `Threads.run`.

        Raises:
            Overloaded: too many wait, most of them this asker's.
        """
        future: Future[T] = Future()
        self._lane.put((future, partial(work, *args, **kwargs)), asker)
        return await asyncio.wrap_future(future)


def _work(waiting: tuple[Future[Any], Callable[[], Any]]) -> None:
    future, work = waiting
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _refuse(waiting: tuple[Future[Any], Callable[[], Any]], error: Overloaded) -> None:
    future, _ = waiting
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _stand_back(nice: int) -> None:
    if nice and sys.platform == "linux":  # elsewhere a priority is a process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)
