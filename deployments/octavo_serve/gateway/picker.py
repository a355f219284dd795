"""Which shard a request goes to, and when: one router per model, asked in the gateway, over the shards that Serve runs.

Serve lists the shards (`ray_private.Deployment`), and those that can be reached join (`shard_client`); over the same
link they say what they hold and how busy they are (`feed`); `octavo.routing` decides. A request that finds every shard
full waits here, in the order of `octavo.fairness`; what would wait too long is refused before it is tokenised
(`octavo.routing.admission`), and waits as long as it takes once it was accepted. Serve is told of all of them, for it
scales by what waits and runs, but never asked: a handle call takes 0.8 ms of CPU at its two ends (docs/serve_cost.md),
a decision less than a tenth of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from octavo.cost_model import attended
from octavo.errors import DeadlineMissed, EngineDead, ModelNotReady, Overloaded
from octavo.fairness import SchedulingPolicy
from octavo.load import ShardState
from octavo.request import BELOW_ALL, Placement, Request
from octavo.routing.admission import (
    UNLIMITED,
    Admission,
    Outlook,
    Parts,
    QueueLimits,
    Room,
    Waiting,
    check_deadline,
    outlook,
)
from octavo.routing.policy import Query
from octavo.routing.router import PREFILL, Decision, Router, RoutingConfig
from octavo_serve.api.model import NO_CLAIM, Claim
from octavo_serve.api.telemetry import Cause
from octavo_serve.gateway.line import Line
from octavo_serve.gateway.link import Link
from octavo_serve.ray_private import Replica

LONG_PROMPT = 2048
"""Tokens from which a prompt waits for a thread that prepares it (`octavo_serve.api.prompts.is_long`)."""

MOST_BELOW = 256
"""Requests below all others that are under way at a shard: enough for any, and few for the gateways' books."""


class Books(Protocol):
    """What a picker needs of `octavo_serve.ray_private.Deployment`."""

    name: str
    available: bool

    def asked(self) -> None: ...

    def queued(self, again: bool) -> AbstractContextManager[None]: ...

    def started(self, replica: Replica) -> None: ...

    def ended(self, replica: Replica) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What may wait for a model, and what it can count on (see `octavo_serve.config.settings`).

    Attributes:
        limits: of the queue.
        most_shards: that the model may have.
        start_seconds: that a shard takes to come, until one has been seen to.
        policy: the order in which requests run, here and at the shards.
    """

    limits: QueueLimits = UNLIMITED
    most_shards: int = 1
    start_seconds: float = 30.0
    policy: SchedulingPolicy = "priority"


class Picked:
    """A shard picked for a request, and the request on everybody's books until `ended`.

    Attributes:
        link: to the shard.
        placement: what was decided, and why.
        decision: with all its numbers.
        prefill: the shard on which its prompt is to be computed before; None: there is none.
    """

    def __init__(
        self, picker: Picker, replica: Replica, link: Link, placement: Placement, decision: Decision | None = None
    ) -> None:
        self.prefill: Picked | None = None
        self.link = link
        self.placement = placement
        self.decision = decision
        self._picker = picker
        self._replica = replica

    def ended(self, *, ran: bool) -> None:
        """The request does not run there, or no longer; to be called once.

        Args:
            ran: whether it came as far as a token, so that its prompt is in the shard's cache.
        """
        self._picker.ended(self._replica, self.placement.ticket, ran)

    def holds(self, chain: Sequence[bytes]) -> int:
        """How many of a chain's first blocks are at the shard, as far as it has said."""
        known = self._picker.router.shards.get(self._replica.name)
        return 0 if known is None else known.blocks.matched(chain)

    def gone(self) -> None:
        """The shard does not take requests: pick it no more, until it joins again."""
        self._picker.leave(self._replica.name, self.link)


class Picker:
    """Picks shards of one model, none of which gets more than its capacity from here. All in one event loop.

    Args:
        routing: how to decide.
        books: the shards' deployment.
        queue: what may wait.

    Attributes:
        router: what is known of the shards.
        admission: what decides who may wait.
        refused: requests, by cause.
        took: seconds until a shard came, from when it was waited for; None before the first.
        links: to those that can be picked, by name.
    """

    def __init__(self, routing: RoutingConfig, books: Books, queue: QueueSettings | None = None) -> None:
        self.router = Router(routing)
        self.admission = Admission(UNLIMITED)
        self.parts = Parts()
        self._line = Line()
        self.queue = queue or QueueSettings()
        self.took: float | None = None
        self._books = books
        self.links: dict[str, Link] = {}
        self._replicas: dict[str, Replica] = {}
        self._running: Counter[str] = Counter()
        self._roomy: tuple[str, ...] | None = None  # shards with room; None: that may have changed
        self._first_list = asyncio.Event()
        self._room = asyncio.Event()
        self.refused: Counter[Cause] = Counter()
        self._waiting: Counter[str] = Counter()  # sequences and tokens that wait for room
        self._coming = self._coming_tokens = 0  # sequences that were accepted and are being prepared
        self._preparing = 0.0  # seconds that each of their tokens delays the next request, on average
        self._wanted: float | None = None  # since when a shard has been waited for
        self._came = False  # one of those that were waited for
        self._seen: set[str] = set()  # shards that have joined at any time
        self._state: ShardState | None = None  # of some shard, the last time that there was one
        self._calling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def queue(self) -> QueueSettings:
        """What may wait; may change at any time."""
        return self._queue

    @queue.setter
    def queue(self, queue: QueueSettings) -> None:
        self._queue = queue
        self.admission.limits, self._line.policy = queue.limits, queue.policy

    @property
    def num_waiting(self) -> int:
        """Requests that wait here for room at a shard."""
        return self._waiting["requests"]

    @property
    def start_seconds(self) -> float:
        """That a shard takes to come, from when it is waited for."""
        return self._queue.start_seconds if self.took is None else self.took

    @contextlib.contextmanager
    def admitted(
        self, key: Callable[[], bytes], sequences: int, tokens: int, claim: Claim = NO_CLAIM
    ) -> Iterator[None]:
        """Accept a request that is about to come, or refuse it; it is prepared within this, and counts meanwhile.

        Args:
            key: names it, and the same when it comes again.
            sequences: that it becomes.
            tokens: of its prompts, about.
            claim: whose it is, and when its first token must come.

        Raises:
            Overloaded: it would wait too long.
            DeadlineMissed: it would come too late.
            ModelNotReady: the same, and there is no shard yet.
        """
        start = time.monotonic()
        self._admit(key, start, claim)
        self._coming += sequences
        self._coming_tokens += tokens
        learns = tokens >= LONG_PROMPT and bool(self.links)  # without a shard it waits for the first one
        ahead = self._coming_tokens
        try:
            yield
            if learns:
                each = (time.monotonic() - start) / ahead
                self._preparing += 0.1 * (each - self._preparing) if self._preparing else each
        finally:
            self._coming -= sequences
            self._coming_tokens -= tokens

    def _admit(self, key: Callable[[], bytes], now: float, claim: Claim) -> None:
        if not self._first_list.is_set():
            return
        try:
            found = self._outlook(now) if claim.due is None else self._full_outlook(now)
            if (part := self._part(claim.tenant, claim.weight)) < 1:
                found = found.part(part)
            if claim.due is not None:
                self._check_deadline(found.ahead, claim.due - now)
            self.admission.admit(found, key, now)
        except Overloaded as error:
            self._books.asked()
            self.refused["queue" if self.links else "starting"] += 1
            if self.links:
                raise
            if self._calling is None or self._calling.done():
                self._calling = asyncio.create_task(self._call())  # it is what waits that brings a shard up
            why = f"no shard is there, and one takes about {self.start_seconds:.0f} s to come"
            raise ModelNotReady(why, error.retry_after) from None

    def _part(self, tenant: str, weight: float) -> float:
        """Of what is ahead of all, that is ahead of a tenant's next request."""
        return self.parts.of(tenant, weight) if self._queue.policy == "fair" else 1.0

    def _check_deadline(self, expected: float, left: float) -> None:
        try:
            check_deadline(expected, left)
        except DeadlineMissed:
            self.refused["deadline"] += 1
            raise

    def _outlook(self, now: float) -> Outlook:
        tokens = self._waiting["tokens"] + self.router.backlog_tokens
        if not self._waiting["requests"] and not self._coming and tokens <= self._queue.limits.max_tokens:
            for name, replica in self._replicas.items():  # in the usual case the first has room: a few microseconds
                start = self.router.state_of(name, now).start_seconds
                if self._running[name] < replica.capacity and start() <= self._queue.limits.max_seconds:
                    return Outlook(0.0, 0.0, tokens)
        return self._full_outlook(now)

    def _full_outlook(self, now: float) -> Outlook:
        shards = self.router.shards
        sequences, tokens, rate = self._waiting["sequences"], self._waiting["tokens"], math.inf
        coming = coming_tokens = 0  # to each shard
        if self._with_room():
            count = len(self._replicas)
            coming, coming_tokens = -(-self._coming // count), self._coming_tokens // count
        else:  # who is being prepared will wait here
            sequences, tokens = sequences + self._coming, tokens + self._coming_tokens
        rooms = [
            Room(
                state=_with(self.router.state_of(name, now), coming, coming_tokens),
                mine=shards[name].in_flight + coming,
                more=replica.capacity - self._running[name],
            )
            for name, replica in self._replicas.items()
        ]
        growth, soon = self._growth(now)
        if rooms:
            self._state = rooms[0].state
        elif self._state is not None and sequences:
            prompt = tokens / sequences
            rate = self._queue.most_shards * self._state.starts_per_second(prompt, self._state.max_num_seqs)
        waiting = Waiting(sequences=sequences, tokens=tokens, growth=growth, soon=soon, rate=rate)
        found = outlook(rooms, waiting)
        return replace(found, ahead=max(found.ahead, self._preparing * self._coming_tokens))  # both go on at once

    def _growth(self, now: float) -> tuple[float, float]:
        """Shards that there can be for each that is there, and seconds until the next.

        One that has not come in twice its time is not counted on: the cluster may have no room for it.
        """
        waited = 0.0 if self._wanted is None else now - self._wanted
        if self.links and (waited > 2 * self.start_seconds or self._queue.most_shards <= len(self.links)):
            return 1.0, 0.0
        soon = self.start_seconds - waited if waited < self.start_seconds else waited  # as long again as it has been
        return self._queue.most_shards / max(1, len(self.links)), soon

    async def _call(self) -> None:
        self._want()
        with contextlib.suppress(EngineDead):
            await self.anybody()

    def _want(self) -> None:
        if self._wanted is None:
            self._wanted, self._came = time.monotonic(), False

    @property
    def waiting(self) -> int:
        """Requests that no shard has taken yet."""
        return self._waiting["requests"]

    def queue_seconds(self) -> float:
        """Until a request that comes now begins, as predicted: what admission compares with its limit."""
        return self._full_outlook(time.monotonic()).ahead

    def room_below(self) -> int:
        """Sequences below all others that may be under way, in all gateways: as many as places are nobody else's.

        One where no shard is there, which brings one up.
        """
        now, found = time.monotonic(), 0
        for name, replica in self._replicas.items():
            state = self.router.state_of(name, now)
            found += min(state.max_num_seqs - state.num_sequences, replica.capacity - self._running[name], MOST_BELOW)
        return max(0, found) if self._replicas else 1

    async def pick(self, request: Request) -> Picked:
        """The shard that the router finds best; waits while none has room, or there is none.

        Raises:
            EngineDead: the deployment has failed.
            DeadlineMissed: its first token would come too late, or it waited until then.
        """
        if not self._first_list.is_set():
            await self._first_list.wait()
        self._books.asked()
        candidates = self._with_room()
        since = time.monotonic()
        if not candidates or self._line or self._closed:
            candidates = await self._wait_for_room(request)
        placement = self._route(request, candidates, time.monotonic() - since)
        picked = self._picked(placement)
        if placement.prefill and self.router.latest is not None and (first := self.router.latest.choice.prefill):
            picked.prefill = self._picked(first.placement(placement.ticket + PREFILL))
        return picked

    def _picked(self, placement: Placement) -> Picked:
        replica = self._replicas[placement.shard]
        self._running[replica.name] += 1
        if self._running[replica.name] >= replica.capacity:
            self._roomy = None
        self._books.started(replica)
        return Picked(self, replica, self.links[replica.name], placement, self.router.latest)

    async def anybody(self) -> None:
        """Wait until there is a shard.

        Raises:
            EngineDead: the deployment has failed.
        """
        await self._first_list.wait()
        with self._books.queued(again=False):
            while not self.links:
                await self._news()

    async def close(self) -> None:
        """Follow the shards no more; who waits is told so."""
        self._closed = True
        self.listed()
        if self._calling is not None:
            self._calling.cancel()
        self.router.close()
        await self._books.close()

    def _route(self, request: Request, names: Sequence[str], waited: float) -> Placement:
        tokens, sequences = len(request.prompt_token_ids), request.params.num_places
        below, parts = request.priority >= BELOW_ALL, _has_parts(request)
        query = Query(tokens, sequences, request.session, adapter=request.adapter_digest, parts=parts, below=below)
        ticket, chain = request.request_id, request.block_hashes or []
        within = self._queue.limits.max_seconds
        choice = self.router.route(ticket, chain, query, names, time.monotonic(), within)
        score = choice.score
        self._line.charge(request, score.own)
        if request.deadline is not None and request.emitted is None:
            request.deadline -= waited
            try:
                part = self._part(request.tenant, request.weight)
                self._check_deadline(score.first_token - (1 - part) * score.start, request.deadline)
            except DeadlineMissed:
                self.router.completed(ticket, ran=False)
                raise
        return choice.placement(ticket)

    async def _wait_for_room(self, request: Request) -> tuple[str, ...]:
        self._want()
        size = {"requests": 1, "sequences": request.params.num_places, "tokens": len(request.prompt_token_ids)}
        self._waiting.update(size)
        try:
            with self._books.queued(again=request.emitted is not None), self._line.joined(request) as waiting:
                async with asyncio.timeout(None if request.emitted is not None else request.deadline):
                    while self._line.first() is not waiting or not (candidates := self._with_room()):
                        self._check()
                        waiting.called.clear()
                        await waiting.called.wait()
                    return candidates
        except TimeoutError:
            raise DeadlineMissed(f"it waited for room at a shard for {request.deadline:g} s, its deadline") from None
        finally:
            self._waiting.subtract(size)
            if self.links and not self._waiting["requests"]:
                self._wanted = None

    async def news(self, seconds: float) -> None:
        """Wait until something has changed, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news()

    async def _news(self) -> None:
        """Wait until something has changed."""
        self._check()
        self._room.clear()
        await self._room.wait()

    def _check(self) -> None:
        """Raise EngineDead where nothing will change any more."""
        if self._closed:
            raise EngineDead("this model is not served any more")
        if not self._books.available:
            raise EngineDead(f"{self._books.name} has failed; see the server's log")

    def _changed(self) -> None:
        self._room.set()
        self._line.call()

    def _with_room(self) -> tuple[str, ...]:
        """The same tuple while it is the same shards: a router of many is quicker then."""
        if self._roomy is None:
            there = self._replicas.items()
            self._roomy = tuple(name for name, replica in there if self._running[name] < replica.capacity)
        return self._roomy

    def ended(self, replica: Replica, ticket: str, ran: bool) -> None:
        """A request no longer runs at a shard."""
        if self._running[replica.name] >= replica.capacity:
            self._roomy = None
        self._running[replica.name] -= 1
        if not self._running[replica.name]:
            del self._running[replica.name]
        self._changed()
        self._books.ended(replica)
        self.router.completed(ticket, ran=ran)
        self.router.settle(time.monotonic())  # else the last request of all would be counted until the next one

    def listed(self) -> None:
        """Serve has said which shards there are; those that can be reached join."""
        self._first_list.set()
        self._changed()

    def join(self, replica: Replica, link: Link) -> None:
        """A shard can be picked from now on, if it could not be already."""
        name, self._roomy = replica.name, None
        if self._replicas.get(name) != replica:
            self._changed()  # it may take more than before
        self._replicas[name] = replica
        if self.links.get(name) is link:
            return
        if self._wanted is not None and name not in self._seen:
            now = time.monotonic()
            if not self._came:  # the others were asked for later
                self.took = now - self._wanted
            self._came, self._wanted = True, now if self._waiting["requests"] else None
        self._seen.add(name)
        self.links[name] = link
        self.router.join(name, time.monotonic())
        link.tell(self.router, name)
        self._changed()

    def leave(self, name: str, link: Link | None = None) -> None:
        """A shard cannot be picked any more; only if it is picked over this link, where one is given."""
        if name in self.links and link in (None, self.links[name]):
            self.links.pop(name).tell(None, name)
            del self._replicas[name]
            self._roomy = None
            self.router.leave(name)


def _has_parts(request: Request) -> bool:
    """Whether a request's prompt may be computed on one shard, and what follows on another."""
    params = request.params
    samples = request.pooling is None and params.max_tokens != 0
    return samples and params.prompt_logprobs is None and request.emitted is None and not request.alone


def _with(state: ShardState, sequences: int, tokens: int) -> ShardState:
    """A shard with more in its queue, none of which is cached."""
    if not sequences:
        return state
    return state.with_request(sequences, tokens, attended(0, tokens // sequences) * sequences)
