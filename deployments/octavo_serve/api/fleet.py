"""The live view of the fleet: one stream of events for everybody who watches a gateway. Knows no HTTP and no Ray.

    Source ── look, once a second ──> what there is ── difference ──> `change` ──┐
           ── each decision of a router ──> `Sampled` ──────────────> `routing` ──┴──> every viewer

A viewer gets a `state`, and what changes from then on. A `change` is a merge patch (RFC 7396): null takes a field away,
so no field is ever null. While nobody watches nothing is looked at, and routers tell nobody what they decide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from octavo.errors import EngineDead, Overloaded
from octavo.routing.policy import Candidate, score
from octavo.routing.router import Decision
from octavo_serve.api.surface import named_frame, to_json

logger = logging.getLogger("ray.serve")

MAX_VIEWERS = 16
"""Of one gateway."""
MAX_UNREAD = 8
"""Chunks that may wait for a viewer; a second makes one."""
PERIOD = 1.0
"""Seconds between two looks."""
MAX_DECISIONS = 20
"""That are told in a period, of all models together."""
KEPT_DECISIONS = 40
"""That a new viewer is told of."""
MAX_CANDIDATES = 8
"""Shards of a decision that are told, the best ones."""

State = Mapping[str, Any]
Told = Callable[[str, Decision], None]
"""Hears of a decision for a model."""


class Source(Protocol):
    """What there is to see in a gateway."""

    async def look(self) -> State:
        """All of it, as JSON's objects, texts and numbers."""
        ...

    def listen(self, told: Told | None) -> None:
        """Hear of each routing decision from now on; None: no more."""
        ...


class Fleet:
    """What a gateway tells those who watch it.

    Args:
        period: seconds between two events.
    """

    def __init__(self, source: Source, period: float = PERIOD) -> None:
        self._source = source
        self._period = period
        self._viewers: set[Viewer] = set()
        self._state: State | None = None
        self._routing = Sampled(MAX_DECISIONS, KEPT_DECISIONS)
        self._looking: asyncio.Task[None] | None = None
        self._over = ""

    def join(self) -> Viewer:
        """A viewer from now on, until it leaves or is left.

        Raises:
            Overloaded: too many watch.
            EngineDead: the gateway is about to end.
        """
        if self._over:
            raise EngineDead(self._over)
        if len(self._viewers) >= MAX_VIEWERS:
            raise Overloaded(f"{MAX_VIEWERS} watch this gateway already: close a page, or try again later", 10.0)
        viewer = Viewer(self._viewers)
        if self._state is not None:
            self._welcome(viewer)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_ever())
        return viewer

    def end(self, why: str, *, over: bool = False) -> None:
        """End all streams; where it is `over`, there are no more."""
        self._over = why if over else self._over
        self._say(_event("end", {"why": why}))
        for viewer in list(self._viewers):
            viewer.leave()

    async def _look_for_ever(self) -> None:
        self._source.listen(self._decided)
        try:
            while self._viewers:
                try:
                    self._tell(await self._source.look())
                except Exception:  # the next look may go well; a page sees that nothing comes
                    logger.exception("The live view could not look at the fleet")
                await asyncio.sleep(self._period)
        finally:
            self._source.listen(None)
            self._state, self._looking = None, None
            self._routing.clear()

    def _tell(self, state: State) -> None:
        before, self._state = self._state, state
        if before is None:
            for viewer in list(self._viewers):
                self._welcome(viewer)
            return
        chunk = _event("change", {"patch": difference(before, state)})
        decisions, left_out = self._routing.take()
        if decisions or left_out:
            chunk += _event("routing", {"decisions": decisions, "left_out": left_out})
        self._say(chunk)

    def _welcome(self, viewer: Viewer) -> None:
        told = {"state": self._state, "period": self._period, "decisions": list(self._routing.latest)}
        viewer.say(_event("state", told))

    def _say(self, chunk: bytes) -> None:
        for viewer in list(self._viewers):
            viewer.say(chunk)

    def _decided(self, model: str, decision: Decision) -> None:
        if self._routing.wants():
            self._routing.add(decided(model, decision, time.time()))


class Viewer:
    """One who watches.

    Attributes:
        on_drop: called if it does not read what waits for it.
    """

    def __init__(self, among: set[Viewer]) -> None:
        self.on_drop: Callable[[], object] = lambda: None
        self._among = among
        self._unread: list[bytes] = []
        self._more = asyncio.Event()
        among.add(self)

    def say(self, chunk: bytes) -> None:
        if len(self._unread) >= MAX_UNREAD:
            self._unread.clear()
            self.leave()
            self.on_drop()
            return
        self._unread.append(chunk)
        self._more.set()

    def leave(self) -> None:
        """Hear no more; a second call does nothing."""
        self._among.discard(self)
        self._more.set()

    async def next(self) -> bytes:
        """What has been said since the last time; b"" at the end."""
        while not self._unread and self in self._among:
            self._more.clear()
            await self._more.wait()
        chunk = b"".join(self._unread)
        self._unread.clear()
        return chunk


class Sampled:
    """Records of what happens often: in each period at most so many, spread over it by what the last one had.

    Args:
        most: in a period.
        kept: the latest of all periods.

    Attributes:
        latest: oldest first.
    """

    def __init__(self, most: int, kept: int) -> None:
        self.latest: deque[Any] = deque(maxlen=kept)
        self._most = most
        self._every = 1
        self._seen = 0
        self._new: list[Any] = []

    def wants(self) -> bool:
        """Whether the one that has just happened is to be recorded."""
        self._seen += 1
        return self._seen % self._every == 0 and len(self._new) < self._most

    def add(self, record: Any) -> None:
        self._new.append(record)

    def take(self) -> tuple[list[Any], int]:
        """What was recorded since the last time, and how many there were besides."""
        new, left_out = self._new, self._seen - len(self._new)
        self._every = max(1, -(-self._seen // self._most))
        self._seen, self._new = 0, []
        self.latest.extend(new)
        return new, left_out

    def clear(self) -> None:
        self.take()
        self.latest.clear()


def difference(before: State, after: State) -> dict[str, Any]:
    """The merge patch that makes the one of the other."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            if inner := difference(known, value):
                patch[name] = inner
        elif name not in before or known != value:
            patch[name] = value
    return patch


def decided(model: str, decision: Decision, at: float) -> dict[str, Any]:
    """A decision as it is told: numbers alone, and the end of the request's id, by which the log finds it.

    Args:
        at: seconds since 1970.
    """
    query, choice = decision.query, decision.choice
    places = {name: place for place, name in enumerate(choice.order)}
    ranked = sorted(decision.candidates, key=lambda shard: places.get(shard.name, len(places)))
    return {
        "at": round(at, 3),
        "model": model,
        "id": decision.ticket[-8:],
        "tokens": query.tokens,
        "sequences": query.sequences,
        "busy": round(query.busy, 3),
        "shard": choice.order[0],
        "reason": choice.reason,
        "prefill": "" if choice.prefill is None else choice.prefill.order[0],
        "cached": choice.cached,
        "first_token": round(choice.score.first_token, 4),
        "candidates": [_candidate(decision, shard) for shard in ranked[:MAX_CANDIDATES]],
        "more": max(0, len(ranked) - MAX_CANDIDATES) + decision.more,
    }


def _candidate(decision: Decision, shard: Candidate) -> dict[str, Any]:
    terms = score(decision.query, shard, shard.cached, decision.stream_weight)
    return {
        "shard": shard.name,
        "cached": shard.cached,
        "wait": round(terms.wait, 5),
        "queue": round(terms.queue, 5),
        "adapter": round(terms.adapter, 5),
        "fetch": round(terms.fetch, 5),
        "fetched": terms.fetched,
        "peer": shard.peer if terms.fetched else "",
        "own": round(terms.own, 5),
        "others": round(terms.others, 5),
        "total": round(terms.total, 5),
        "stale": shard.stale,
    }


def _event(kind: str, said: Mapping[str, Any]) -> bytes:
    event = {"type": kind, **said}
    return named_frame(event, to_json(event))
