"""A fleet in simulated time: real schedulers, block pools and routers, no model, no network, no sleeping.

An hour of eight shards passes in about a minute on one core, so a routing policy can be tried in the time that a cup of
tea takes, and an adversary can be a test. Shards are `Engine`s of which only the schedulers work; a cost model says how
long a step takes, and every token is the same. What happens is a heap of (time, event). Routers hear of a shard's
events and load every `report_s`, `delay_s` after they were said.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from octavo.block_hash import hash_chain, root_hash
from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.engine import Engine
from octavo.engine.fair_queues import seconds_of
from octavo.engine.plan import StepPlan
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable
from octavo.rehearsal.simulated import Profile, SimulatedExecutor
from octavo.request import BELOW_ALL, Request, SamplingParams, SequenceUpdate
from octavo.routing.index import keys_of
from octavo.routing.policy import Choice, Query
from octavo.routing.router import PREFILL, Router, RoutingConfig
from octavo.step import StepResult

MODEL = "fleet"
VOCAB = 32_000


@dataclass(slots=True, eq=False)
class Trip:
    """One request's way through the fleet; times in seconds, None while they have not come."""

    request: Request
    sent: float
    choice: Choice
    shard: str
    first_token: float | None = None
    finished: float | None = None
    cached: int = 0


@dataclass(slots=True, eq=False)
class SimulatedShard:
    """An engine whose steps take simulated time, and what it has said to routers."""

    name: str
    engine: Engine
    cost: Cost
    inbox: list[Request] = field(default_factory=list)
    busy: bool = False
    mute_until: float = -1.0
    next_event: int = 0  # its number
    alive: bool = True


@dataclass(slots=True, eq=False)
class _Apart:
    """A prompt that is computed on one shard for a request that is to run on another.

    Attributes:
        where, to: these two.
        told: blocks of it that are there or under way.
        line: when the last of them will have come.
    """

    request: Request
    where: str
    to: SimulatedShard
    told: int = 0
    line: float = 0.0


class Fleet:
    """Shards and routers under one simulated clock.

    Args:
        profile: of every shard's machine; `config.rehearsal_speed` makes some slower.
        gateways: routers, each with its own index; requests take turns among them.
        report_s: between two reports of a shard.
        delay_s: that anything takes from a router to a shard, or back.
        router: makes a router.
        link_bytes: a second, that KV blocks take from one shard to another; 0.0: none are given.

    Attributes:
        served: seconds of the machine that each tenant had, as `octavo.engine.fair_queues` splits a step.
    """

    def __init__(
        self,
        profile: Profile,
        num_shards: int,
        config: EngineConfig,
        routing: RoutingConfig,
        *,
        gateways: int = 1,
        report_s: float = 0.05,
        delay_s: float = 0.002,
        router: Callable[[RoutingConfig], Router] = Router,
        link_bytes: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.profile, self.config, self.routing = profile, replace(config, speculation=False), routing
        self.report_s, self.delay_s = report_s, delay_s
        block_bytes = profile.kv_bytes_per_token * config.block_size
        self._block_seconds = block_bytes / link_bytes if link_bytes else 0.0
        self._prompts: dict[str, _Apart] = {}  # by ticket
        self.routers = [router(routing) for _ in range(gateways)]
        self.shards: dict[str, SimulatedShard] = {}
        self.trips: dict[str, Trip] = {}
        self.served = defaultdict[str, float](float)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._to_do = 0  # events that are not reports
        for rank in range(num_shards):
            self.start(f"shard{rank}", config.speed_of_shard(rank))

    # ---- what a test or a replay does ---------------------------------------------------------------------------

    def start(self, name: str, speed: float = 1.0, cost: Cost | None = None) -> SimulatedShard:
        """Add a shard; routers hear of it at once and get its snapshot after `delay_s`.

        Args:
            cost: of its steps at speed 1; None: the profile's.
        """
        executor = SimulatedExecutor(self.profile, self.config, range(VOCAB), VOCAB)  # it is never asked for a step
        engine = Engine(MODEL, executor, self.config, (), clock=lambda: self.now)
        each = Cost(*(seconds / speed for seconds in cost or self.profile.cost))
        shard = self.shards[name] = SimulatedShard(name, engine, each)
        for router in self.routers:
            router.join(name, self.now)
        self._report(shard)
        return shard

    def kill(self, name: str) -> list[Request]:
        """A shard dies; returns the requests it had not finished."""
        self.shards.pop(name).alive = False
        lost = [trip.request for trip in self.trips.values() if trip.shard == name and trip.finished is None]
        for router in self.routers:
            router.leave(name)
            for request in lost:
                router.completed(request.request_id)
        for ticket in [ticket for ticket, prompt in self._prompts.items() if prompt.where == name]:
            self._computed(ticket)
        return lost

    def cut(self, name: str, until: float) -> None:
        """Nothing that a shard says reaches a router until then; its events are lost."""
        self.shards[name].mute_until = until

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._to_do += 1
        self._push(when, lambda: self._did(action))

    def send(self, request: Request, names: list[str] | None = None) -> Trip:
        """Route a request now, to one of some shards or of all, and put it on its way."""
        number = len(self.trips)
        router = self.routers[number % len(self.routers)]
        root = root_hash(MODEL, salt=request.cache_salt)
        if request.block_hashes is None:
            request.block_hashes = hash_chain(root, request.prompt_token_ids, self.config.block_size)
        parts = bool(self._block_seconds) and request.params.max_tokens != 0
        below, places = request.priority >= BELOW_ALL, request.params.num_places
        query = Query(len(request.prompt_token_ids), places, request.session, parts=parts, below=below)
        ticket = request.request_id
        choice = router.route(ticket, request.block_hashes, query, names or list(self.shards), self.now)
        request.placement = choice.placement(ticket)
        trip = self.trips[ticket] = Trip(request, self.now, choice, choice.order[0])
        shard = self.shards[trip.shard]
        if choice.prefill:
            self._compute_apart(shard, request, choice.prefill)
        else:
            self._send(shard, request)
        return trip

    def run(self, until: float | None = None) -> None:
        """Let time pass until then, or until nothing is left to do."""
        while self._events and (self._to_do if until is None else self._events[0][0] <= until):
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = self.now if until is None else until

    def is_exact(self) -> bool:
        """Whether every router's index equals what the shards really hold."""
        return all(
            router.shards[name].blocks.keys == set(keys_of(shard.engine.pool.snapshot()[1]))
            for router in self.routers
            for name, shard in self.shards.items()
        )

    # ---- what happens -------------------------------------------------------------------------------------------

    def _push(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), action))

    def _did(self, action: Callable[[], None]) -> None:
        self._to_do -= 1
        action()

    def _receive(self, shard: SimulatedShard, request: Request) -> None:
        shard.inbox.append(request)
        if not shard.busy:
            self._step(shard)

    def _send(self, shard: SimulatedShard, request: Request) -> None:
        assert request.placement is not None
        takes = self._fetch if request.placement.peer else self._receive
        self.at(self.now + self.delay_s, lambda: takes(shard, request))

    def _compute_apart(self, shard: SimulatedShard, request: Request, prefill: Choice) -> None:
        """Have a prompt computed on one shard, then go on with the request on its own."""
        ticket, first = request.request_id + PREFILL, self.shards[prefill.order[0]]
        prompt = replace(
            request, request_id=ticket, params=SamplingParams(max_tokens=0), placement=prefill.placement(ticket)
        )
        self._prompts[ticket] = _Apart(request, first.name, shard)
        self._send(first, prompt)

    def _bring(self, shard: SimulatedShard) -> None:
        """Have blocks of prompts that are computed apart go to where they are wanted, as the steps here fill them."""
        for prompt in self._prompts.values():
            if prompt.where == shard.name and prompt.to.alive:
                there = self._there(prompt.request)
                new = max(0, len(there) - max(prompt.told, len(prompt.to.engine.pool.match(there))))
                if new:
                    prompt.told = len(there)
                    prompt.line = max(self.now + self.delay_s, prompt.line) + new * self._block_seconds
                    self.at(prompt.line, lambda to=prompt.to, there=there: take_in(to.engine.pool, there))  # type: ignore[misc]

    def _computed(self, ticket: str) -> None:
        """A prompt that was computed apart is done, or its shard has died: its request goes on."""
        prompt = self._prompts.pop(ticket)
        # what is under way comes first
        self.at(max(self.now, prompt.line), lambda: self._fetch(prompt.to, prompt.request))

    def _there(self, request: Request) -> list[bytes]:
        """The first blocks of a request that are where it is to fetch them."""
        assert request.placement is not None
        chain = (request.block_hashes or [])[: request.placement.peer_blocks]
        peer = self.shards.get(request.placement.peer)
        return [] if peer is None else chain[: len(peer.engine.pool.match(chain))]

    def _fetch(self, shard: SimulatedShard, request: Request) -> None:
        """Have blocks come from another shard, as many as it has of those that are said to be there."""
        there = self._there(request)
        missing = len(there) - len(shard.engine.pool.match(there))

        def arrive() -> None:
            if missing > 0 and shard.alive:
                take_in(shard.engine.pool, there)
            self._receive(shard, request)

        self.at(self.now + self.delay_s + missing * self._block_seconds, arrive)

    def _step(self, shard: SimulatedShard) -> None:
        """Take in what came, start the next step; its results are there when its time has passed."""
        if not shard.alive:
            return
        engine = shard.engine
        while shard.inbox:
            self._add(engine, shard.inbox.pop(0))
        plan = engine.scheduler.schedule()
        self._tell(shard, plan.ended)
        shard.busy = bool(plan.entries)
        if shard.busy:
            seconds = shard.cost.seconds(plan.work)
            self.at(self.now + seconds, lambda: self._commit(shard, plan, seconds))

    def _commit(self, shard: SimulatedShard, plan: StepPlan, seconds: float) -> None:
        if not shard.alive:
            return
        # An engine of one step at a time advances its books when `launch` returns, which here is now
        for tenant, own in seconds_of(plan, shard.cost).items():
            self.served[tenant] += own
        step = shard.engine.scheduler.advance(plan)
        result = StepResult(np.ones(len(step.rows), np.int64), {}, [], seconds)
        updates = shard.engine.scheduler.commit(step, result)
        if self._prompts:
            self._bring(shard)
        self._tell(shard, updates)
        self._step(shard)

    def _tell(self, shard: SimulatedShard, updates: list[SequenceUpdate]) -> None:
        for update in updates:
            self._took(update, ended=not shard.engine.scheduler.sequences(update.request_id))

    def _took(self, update: SequenceUpdate, *, ended: bool) -> None:
        """A step did something to a request, or ended it."""
        if update.request_id in self._prompts:
            if ended:
                for router in self.routers:
                    router.completed(update.request_id)
                self._computed(update.request_id)
            return
        trip = self.trips[update.request_id]
        if trip.first_token is None and update.finish_reason != "late":
            trip.first_token, trip.cached = self.now, update.num_cached_tokens
        if ended:
            trip.finished = self.now
            for router in self.routers:
                router.completed(update.request_id)

    def _add(self, engine: Engine, request: Request) -> None:
        engine.add(request)

    def _report(self, shard: SimulatedShard) -> None:
        """What the feed of `octavo_serve` does, without a network."""
        if not shard.alive:
            return
        events, said = shard.engine.pool.events.take(), self.now
        first = events[0].sequence if events else shard.next_event
        shard.next_event = first + len(events)
        tickets = [shard.engine.tickets.popleft() for _ in range(len(shard.engine.tickets))]
        state = replace(shard.engine.state(), fetched_block=self._block_seconds)
        if self.now >= shard.mute_until:
            for router in self.routers:
                known = router.join(shard.name, self.now)
                snapshot = None if known.blocks.exact else shard.engine.pool.snapshot()

                def deliver(router: Router = router, snapshot: tuple[int, list[bytes]] | None = snapshot) -> None:
                    blocks = router.join(shard.name, self.now).blocks
                    blocks.changes(first, [(event.kind, event.hashes) for event in events])
                    if snapshot is not None:
                        blocks.part(snapshot[0], 0, 1, snapshot[1])
                    router.heard(shard.name, state, tickets, said)

                self._push(self.now + self.delay_s, deliver)
        self._push(self.now + self.report_s, lambda: self._report(shard))


def take_in(pool: BlockPool, chain: list[bytes]) -> None:
    """Have a cache hold blocks that it did not compute, if there is room."""
    cached = pool.match(chain)
    table = BlockTable(pool, cached)
    if table.grow(len(cached) * pool.block_size, len(chain) * pool.block_size) is not None:
        table.publish(chain, len(chain) * pool.block_size)
    table.free()
