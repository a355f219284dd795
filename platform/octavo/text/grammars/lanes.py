"""Queues of work with threads of their own: what one kind of work takes delays no other kind, and no asker another.

    put(one, asker) ──> Turns: whoever has had the least of the threads' CPU time is next ──> a thread

Turns are start-time fair queueing (Goyal, Vin, Cheng 1996), with the seconds that the work took: whoever comes begins
where the one is that was served last, so nobody saves up turns by staying away, and who sends what takes long waits
longer. Where no place is left, whoever has most in the queue loses the newest of it. One asker alone may use all places
and threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from octavo.errors import Overloaded

T = TypeVar("T")

IDLE = 30.0
"""Seconds that a thread waits for more before it ends."""

RETURN_EVERY = 1.0
"""Seconds of a thread's CPU after which what its work has freed is given back to the system, which takes 2 ms. Without
that a shard grew by 260 MB beside 10,000 hostile schemas and a gateway by 220; malloc kept most of it for later."""

REMEMBERED = 1024
"""Askers of whom it is known what they have had while others keep the threads busy."""

_STACK = 2**28
"""Bytes of a thread's stack, of which the system gives what is touched: a chain of 12,000 rules recurses."""


@dataclass(slots=True)
class _Asker(Generic[T]):
    """Somebody with work here.

    Attributes:
        had: seconds, of which some were others' while this one was not there.
        last: seconds that the last one took: each that runs is taken to take as long, until it has ended.
    """

    had: float
    last: float = 0.0
    running: int = 0
    waiting: deque[T] = field(default_factory=deque)

    @property
    def turn(self) -> tuple[float, int]:
        """The least is next."""
        return self.had + self.running * self.last, self.running


class Turns(Generic[T]):
    """What waits, by asker, and who is next."""

    def __init__(self) -> None:
        self._askers: dict[str, _Asker[T]] = {}
        self._now = 0.0  # what the one had who was served last
        self._running = 0
        self.waiting = 0

    def add(self, one: T, asker: str) -> None:
        """Have it wait."""
        found = self._askers.setdefault(asker, _Asker(self._now))
        if not found.waiting and not found.running:
            found.had = max(found.had, self._now)
        found.waiting.append(one)
        self.waiting += 1

    def next(self) -> tuple[str, T]:
        """The next one, and whose it is. Something must wait."""
        waiting = (name for name, asker in self._askers.items() if asker.waiting)
        name = min(waiting, key=lambda name: self._askers[name].turn)
        asker = self._askers[name]
        self._now = max(self._now, asker.had)
        self._running, asker.running, self.waiting = self._running + 1, asker.running + 1, self.waiting - 1
        return name, asker.waiting.popleft()

    def ended(self, name: str, seconds: float) -> None:
        """What was given to somebody's next one has taken so long."""
        asker = self._askers[name]
        asker.had, asker.last = asker.had + seconds, seconds
        self._running, asker.running = self._running - 1, asker.running - 1
        if not self._running and not self.waiting:
            self._askers.clear()
        elif not asker.running and not asker.waiting and len(self._askers) > REMEMBERED:
            del self._askers[name]

    def of(self, asker: str) -> int:
        """How many of somebody's wait."""
        return len(self._askers[asker].waiting) if asker in self._askers else 0

    def take_from_longest(self, beside: str) -> tuple[T, int] | None:
        """The newest of whoever has most that waits, and how many that were; None if `beside` is to have as many."""
        longest = max(self._askers.values(), key=lambda asker: len(asker.waiting), default=None)
        if longest is None or (had := len(longest.waiting)) <= self.of(beside) + 1:
            return None
        self.waiting -= 1
        return longest.waiting.pop(), had


class Lane(Generic[T]):
    """One queue; safe to use from any thread.

    Args:
        work: what a thread does with each; it raises nothing.
        refuse: told of each that loses its place to somebody else's; called in the thread of that one.
        threads: most threads; each is started when it is needed, and ends when it has long been idle.
        waiting: most that may wait.
        what: those are, for the error.
        nice: by how much the threads stand back behind the process's others, where the system can tell them apart.
    """

    def __init__(
        self,
        work: Callable[[T], None],
        refuse: Callable[[T, Overloaded], None],
        *,
        threads: int,
        waiting: int,
        what: str,
        nice: int = 0,
    ) -> None:
        self._work, self._refuse = work, refuse
        self._most, self._places, self._what, self._nice = threads, waiting, what, nice
        self._turns: Turns[T] = Turns()
        self._changed = threading.Condition()
        self._idle = 0
        self.threads: list[threading.Thread] = []

    def put(self, one: T, asker: str = "") -> None:
        """Have it worked on when it is its asker's turn.

        Raises:
            Overloaded: too many wait, and nobody has more among them than this asker.
        """
        with self._changed:
            refused = self._make_place(asker)
            self._turns.add(one, asker)
            if self._turns.waiting > self._idle and len(self.threads) < self._most:
                self.threads.append(deep_thread(self._run))
            self._changed.notify()
        if refused is not None:
            self._refuse(*refused)

    def _make_place(self, asker: str) -> tuple[T, Overloaded] | None:
        """What loses its place, and why."""
        if self._turns.waiting < self._places:
            return None
        if (taken := self._turns.take_from_longest(asker)) is None:
            raise self._overloaded(self._turns.of(asker))
        one, had = taken
        return one, self._overloaded(had)

    def _overloaded(self, own: int) -> Overloaded:
        return Overloaded(
            f"{self._places} {self._what} wait; at most {self._places} may, and {own} of them are yours: "
            "send fewer new ones at once, and one that was sent before where you can",
            1.0,
        )

    def _run(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere a priority is a process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + self._nice)
        worked = 0.0
        while (taken := self._next()) is not None:
            asker, one = taken
            begin = time.thread_time()
            self._work(one)
            seconds = time.thread_time() - begin
            with self._changed:
                self._turns.ended(asker, seconds)
            if (worked := worked + seconds) > RETURN_EVERY:
                return_memory()
                worked = 0.0
        return_memory()

    def _next(self) -> tuple[str, T] | None:
        """Whose turn it is, and with what; None where there has long been nothing."""
        with self._changed:
            self._idle += 1
            while not self._turns.waiting:
                if not self._changed.wait(IDLE) and not self._turns.waiting:
                    self._idle -= 1
                    self.threads.remove(threading.current_thread())
                    return None
            self._idle -= 1
            return self._turns.next()


def return_memory() -> None:
    """Give what is free of malloc's memory back to the system, where it can be asked for that (glibc)."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


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
