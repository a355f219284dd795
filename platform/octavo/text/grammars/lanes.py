"""Queues of work with threads of their own: what one kind of work takes delays no other kind."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from octavo.errors import Overloaded

T = TypeVar("T")

IDLE = 30.0
"""Seconds that a thread waits for more before it ends."""

_STACK = 2**28
"""Bytes of a thread's stack, of which the system gives what is touched: a chain of 12,000 rules recurses."""


class Lane(Generic[T]):
    """One queue; safe to use from any thread.

    Args:
        work: what a thread does with each; it raises nothing.
        threads: most threads; each is started when it is needed, and ends when it has long been idle.
        waiting: most that may wait.
        what: those are, for the error.
        nice: by how much the threads stand back behind the process's others, where the system can tell them apart.
    """

    def __init__(self, work: Callable[[T], None], *, threads: int, waiting: int, what: str, nice: int = 0) -> None:
        self._work, self._most, self._places, self._what, self._nice = work, threads, waiting, what, nice
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self.threads: list[threading.Thread] = []

    def put(self, one: T) -> None:
        """Have it worked on, after those that came before.

        Raises:
            Overloaded: too many wait.
        """
        with self._changed:
            if len(self._waiting) >= self._places:
                raise Overloaded(f"{len(self._waiting)} {self._what} wait; at most {self._places} may", 1.0)
            self._waiting.append(one)
            if len(self._waiting) > self._idle and len(self.threads) < self._most:
                self.threads.append(deep_thread(self._run))
            self._changed.notify()

    def _run(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere a priority is a process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + self._nice)
        while True:
            with self._changed:
                self._idle += 1
                while not self._waiting:
                    if not self._changed.wait(IDLE) and not self._waiting:
                        self._idle -= 1
                        self.threads.remove(threading.current_thread())
                        return
                self._idle -= 1
                one = self._waiting.popleft()
            self._work(one)


_begin_lock = threading.Lock()


def deep_thread(work: Callable[[], None]) -> threading.Thread:
    """Begin a thread in which grammars may be compiled: in one with a usual stack, a deep one ends the process."""
    with _begin_lock:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=work, name="octavo-grammars", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread
