"""Requests that go on without their client: each is a task with a log of what it said, which clients may read later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import OctavoError, Overloaded

MAX_RUNNING = 1024
"""Requests of one gateway that go on without a client."""
MAX_LOG_BYTES = 2**26
"""Bytes that all logs of a gateway have together; what has ended is dropped first."""
MAX_ENDED = 1024
"""Requests that have ended and whose log is still there."""


@dataclass(eq=False, slots=True)
class DetachedRun:
    """One of them.

    Attributes:
        owner: name of the caller.
        state: what the surface knows of it.
        logs: whether what it says is kept.
        ended: nothing more will be said.
    """

    owner: str
    state: Any
    logs: bool
    detached: Detached
    ended: bool = False
    lost: bool = False
    task: asyncio.Task[None] | None = None
    _log: list[bytes] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, event: bytes) -> None:
        """Add an event to the log."""
        if self.logs and not self.lost:
            self._log.append(event)
            self.detached.grown(self, len(event))
            self._more.set()

    def lose(self) -> int:
        """Drop the log; returns its bytes."""
        size = sum(map(len, self._log))
        self.lost, self._log = True, []
        self._more.set()
        return size

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """The log's events from a number on, and those to come, until the end.

        Raises:
            OctavoError: the log was dropped.
        """
        position = after
        while True:
            self._more.clear()
            if self.lost:
                raise OctavoError("the events of this response are not kept any longer: fetch the response itself")
            if position < len(self._log):
                chunk, position = b"".join(self._log[position:]), len(self._log)
                yield chunk
            elif self.ended:
                return
            else:
                await self._more.wait()

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        self._more.set()


class Detached:
    """All of a gateway's, by their keys."""

    def __init__(self) -> None:
        self._runs: dict[str, DetachedRun] = {}
        self._bytes = 0

    def start(
        self, key: str, owner: str, state: Any, work: Callable[[DetachedRun], Awaitable[None]], *, logs: bool
    ) -> DetachedRun:
        """Begin one.

        Raises:
            Overloaded: too many run.
        """
        if sum(not run.ended for run in self._runs.values()) >= MAX_RUNNING:
            raise Overloaded(f"{MAX_RUNNING} requests run in the background here already", retry_after=10.0)
        run = self._runs[key] = DetachedRun(owner, state, logs, self)
        run.task = asyncio.create_task(self._performed(key, run, work))
        return run

    async def _performed(self, key: str, run: DetachedRun, work: Callable[[DetachedRun], Awaitable[None]]) -> None:
        try:
            await work(run)
        finally:
            run.end()
            if not run.logs:
                self._runs.pop(key, None)
            self._tidy()

    def find(self, owner: str, key: str) -> DetachedRun | None:
        """The caller's run with this key, while it runs or its log is there."""
        run = self._runs.get(key)
        return run if run is not None and run.owner == owner else None

    async def cancel(self, run: DetachedRun) -> None:
        """End one, and wait until it has ended."""
        if run.task is not None and not run.task.done():
            run.task.cancel()
            await asyncio.wait([run.task])

    def drop(self, key: str) -> None:
        """Forget the log of one that has ended."""
        run = self._runs.get(key)
        if run is not None and run.ended:
            self._bytes -= run.lose()
            del self._runs[key]

    def grown(self, run: DetachedRun, size: int) -> None:
        """A log has grown: make room, by its own loss if nothing else helps."""
        self._bytes += size
        if self._bytes > MAX_LOG_BYTES:
            self._tidy()
        if self._bytes > MAX_LOG_BYTES:
            self._bytes -= run.lose()

    def _tidy(self) -> None:
        ended = [key for key, run in self._runs.items() if run.ended]  # the first that began come first
        for number, key in enumerate(ended):
            if self._bytes <= MAX_LOG_BYTES and len(ended) - number <= MAX_ENDED:
                return
            self.drop(key)
