"""Those that wait in a gateway for room at a shard, in the order of `octavo.fairness`."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from octavo.fairness import Place, SchedulingPolicy, Shares, place_of
from octavo.request import Request


@dataclass(slots=True, eq=False)
class Waiting:
    """One request.

    Attributes:
        called: set when it may be its turn.
    """

    place: Place
    request: Request
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Line:
    """Whose turn it is; only that one is woken. All in one event loop.

    Attributes:
        policy: the order; those that wait already keep their places if it changes.
    """

    def __init__(self) -> None:
        self.policy: SchedulingPolicy = "priority"
        self._shares = Shares()
        self._tenants: dict[str, list[Waiting]] = {}
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._tenants)

    @contextmanager
    def joined(self, request: Request) -> Iterator[Waiting]:
        """Wait within this."""
        tenant = request.tenant if self.policy == "fair" else ""
        resumed, number = request.emitted is not None, next(self._numbers)
        place = place_of(self.policy, request.priority, request.deadline, time.monotonic(), number, resumed=resumed)
        waiting = Waiting(place, request)
        if tenant not in self._tenants:
            self._tenants[tenant] = []
            self._shares.waits(tenant, request.weight)
        bisect.insort(self._tenants[tenant], waiting, key=lambda each: each.place)
        try:
            yield waiting
        finally:
            self._tenants[tenant].remove(waiting)
            if not self._tenants[tenant]:
                del self._tenants[tenant]
                self._shares.served(tenant)
            self.call()

    def first(self) -> Waiting | None:
        """Whose turn it is."""
        heads = ((name, queue[0]) for name, queue in self._tenants.items())
        found = min(
            heads, key=lambda each: (each[1].place.priority, self._shares.level(each[0]), each[1].place), default=None
        )
        return None if found is None else found[1]

    def call(self) -> None:
        """Something has changed: whoever's turn it is looks whether there is room."""
        if (first := self.first()) is not None:
            first.called.set()

    def charge(self, request: Request, seconds: float) -> None:
        """A request is sent to a shard, which it will keep busy for so long."""
        if self.policy == "fair":
            self._shares.charge({request.tenant: seconds}, {request.tenant: request.weight})
