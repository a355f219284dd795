"""Block events: what a shard tells the world about its prefix cache.

A router that hears every event knows exactly which prefixes lie here. Each event has the next sequence number, so a
listener that sees a jump knows it missed something and asks for a snapshot (`BlockPool.snapshot`).

The engine's thread appends; another thread may take, and ask for a snapshot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class BlockEvent:
    """One change of the prefix cache.

    Attributes:
        sequence: counts up by one per event; a gap means events were lost.
        kind: "stored" (blocks can be shared from now on), "removed" (evicted or unpublished) or "cleared" (the whole
            cache).
        hashes: the block hashes concerned, in chain order for "stored"; empty for "cleared". A hash
            covers everything before it, so it needs no parent beside it.
    """

    sequence: int
    kind: Literal["stored", "removed", "cleared"]
    hashes: tuple[bytes, ...] = ()


class EventLog:
    """Numbered events waiting for a listener.

    Memory is bounded: past `capacity` undelivered events the oldest are dropped, which the listener sees as a gap.

    Attributes:
        on_first: called, in the thread that appends, when an event comes while none waits.
    """

    def __init__(self, capacity: int = 16384) -> None:
        self._events: deque[BlockEvent] = deque(maxlen=capacity)
        self.next_sequence = 0
        self.on_first: Callable[[], None] | None = None

    def append(self, kind: Literal["stored", "removed", "cleared"], hashes: tuple[bytes, ...] = ()) -> None:
        """Number an event and keep it for the listener."""
        first = not self._events
        self._events.append(BlockEvent(self.next_sequence, kind, hashes))
        self.next_sequence += 1
        if first and self.on_first is not None:
            self.on_first()

    def take(self) -> list[BlockEvent]:
        """Hand over everything that waits, oldest first."""
        events = []
        while self._events:  # one by one: the engine may append meanwhile
            events.append(self._events.popleft())
        return events
