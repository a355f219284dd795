"""The feed: what a shard's cache holds, which adapters are loaded and how busy it is, from the shard to every gateway.

Block events are sent as they come, at most every FLUSH_SECONDS; load and adapters every `report_s` if they changed, and
each second in any case. Where a gateway says that it hears of many shards (`Ask.pace`), both come less often. A gateway
that reads so slowly that FEED_UNREAD bytes wait for it hears no events: it finds the gap in their numbers and asks for
a snapshot.

Serve's own ways were no match: `record_routing_stats` is polled once a second or so and every change goes to every
router by way of the controller. Figures are in docs/routing.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Protocol

from octavo.engine.engine import Engine
from octavo.kvcache.events import BlockEvent
from octavo.load import LoadedAdapters, ShardState
from octavo.routing.index import Kind
from octavo_serve.wire.messages import BEAT_SECONDS, Ask, Blocks, Report, Snapshot, ToGateway, encode

FLUSH_SECONDS = 0.01
"""Shortest time between two messages about blocks: below the step of any but the smallest models."""

SLOWEST_SECONDS = 0.25
"""Longest pace: what is older is of no use to requests that come more often."""

FEED_UNREAD = 2**20
"""About 1,000 messages about blocks."""

PART = 4096
"""Hashes in one message: 64 KiB, a millisecond to take in."""


class Hearer(Protocol):
    """A connected gateway (`octavo_serve.wire.channel.Channel`)."""

    @property
    def unread(self) -> int: ...

    def send_encoded(self, message: bytes) -> None: ...


class Feed:
    """Tells all hearers. Everything happens in one event loop; the engine's thread only rings.

    Args:
        engine: whose events, load and tickets are sent.
        report_s: seconds between two reports of the load.
        hearers: those who are there now.
    """

    def __init__(self, engine: Engine, report_s: float, hearers: Collection[Hearer]) -> None:
        self._engine, self._report_s, self._hearers = engine, report_s, hearers
        self._loop: asyncio.AbstractEventLoop
        self._reporting: asyncio.Task[None] | None = None
        self._next = 0  # number of the next event to send
        self._state: ShardState | None = None  # sent last
        self._adapters: LoadedAdapters | None = None  # likewise
        self._flushed = 0.0
        self._pace = 0.0  # that a gateway asked for last: all hear of the same shards
        self._waits = False  # there are events that will be flushed in a moment
        self._owed: list[tuple[Hearer, float]] = []  # answers that go behind them

    def open(self) -> None:
        """Begin."""
        self._loop = asyncio.get_running_loop()
        self._engine.pool.events.on_first = self._ring
        self.flush()
        self._reporting = self._loop.create_task(self._report_for_ever())

    def close(self) -> None:
        """End; a second call does nothing."""
        self._engine.pool.events.on_first = None
        if self._reporting is not None:
            self._reporting.cancel()

    def follow(self, engine: Engine) -> None:
        """Tell of another engine from now on; gateways that were told so ask for a snapshot."""
        self._engine.pool.events.on_first = None
        self._engine, self._next, self._state, self._adapters = engine, 0, None, None
        engine.pool.events.on_first = self._ring
        self.flush()

    def flush(self) -> None:
        """Send the events that wait."""
        self._flushed, self._waits = time.monotonic(), False
        events = self._engine.pool.events.take()
        for _, run in groupby(enumerate(events), lambda pair: pair[1].sequence - pair[0]):
            for message in _blocks([event for _, event in run]):  # more than one run if the log overflowed
                self._tell(message)
        self._next = events[-1].sequence + 1 if events else self._next
        owed, self._owed = self._owed, []
        for hearer, asked in owed:
            hearer.send_encoded(encode(Report(self._next, echo=asked)))

    def answer(self, hearer: Hearer, ask: Ask) -> None:
        """Tell one gateway that everything before this has been said, and all that is cached if it asks for it."""
        self._pace = min(max(0.0, ask.pace), SLOWEST_SECONDS)
        if self._waits and not ask.snapshot:  # sixteen gateways that ask are not to have it flushed for each
            self._owed.append((hearer, ask.time))
            return
        self.flush()  # so that the answer's number is the next one it has to see
        if not ask.snapshot or hearer.unread > FEED_UNREAD:
            hearer.send_encoded(encode(Report(self._next, echo=ask.time)))
            return
        sequence, hashes = self._engine.pool.snapshot()
        count = max(1, -(-len(hashes) // PART))
        for index in range(count):
            part = b"".join(hashes[index * PART : (index + 1) * PART])
            hearer.send_encoded(encode(Snapshot(sequence, index, count, part)))
        state, adapters = self._engine.state(), self._engine.adapters.loaded
        hearer.send_encoded(encode(Report(sequence, state, echo=ask.time, adapters=adapters)))

    def _ring(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events_wait)
        except RuntimeError:  # the loop has ended, and all hearers with it
            self._engine.pool.events.on_first = None

    def _events_wait(self) -> None:
        if (rest := self._flushed + max(FLUSH_SECONDS, self._pace) - time.monotonic()) > 0:
            self._waits = True
            self._loop.call_later(rest, self.flush)
        else:
            self.flush()

    async def _report_for_ever(self) -> None:
        said = 0.0
        while True:
            report = self._report()
            if report is not None or time.monotonic() - said >= BEAT_SECONDS:
                said = time.monotonic()
                self._tell(report or Report(self._next))
            await asyncio.sleep(min(max(self._report_s, self._pace), BEAT_SECONDS / 2))

    def _report(self) -> Report | None:
        """The load and the adapters, if they changed."""
        named = self._engine.tickets  # emptied before the state is read, which then counts them
        tickets = [named.popleft() for _ in range(len(named))]
        state = self._engine.state() if self._hearers else self._state
        adapters = self._engine.adapters.loaded
        news = None if adapters is self._adapters else adapters
        if state == self._state and not tickets and news is None:
            return None
        self._state, self._adapters = state, adapters
        return Report(self._next, state, tickets, adapters=news)

    def _tell(self, message: ToGateway) -> None:
        if self._hearers:
            encoded = encode(message)
            for hearer in list(self._hearers):
                if not isinstance(message, Blocks) or hearer.unread < FEED_UNREAD:
                    hearer.send_encoded(encoded)


def _blocks(events: list[BlockEvent]) -> Iterator[Blocks]:
    """Events with consecutive numbers as messages of about PART hashes."""
    changes: list[tuple[Kind, bytes]] = []
    first, hashes = events[0].sequence, 0
    for event in events:
        if hashes >= PART:
            yield Blocks(first, changes)
            changes, first, hashes = [], event.sequence, 0
        changes.append((event.kind, b"".join(event.hashes)))
        hashes += len(event.hashes)
    yield Blocks(first, changes)
