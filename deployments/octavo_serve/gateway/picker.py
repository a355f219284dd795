"""Which shard a request goes to, and when: one router per model, asked in the gateway, over the shards that Serve runs.

Serve lists the shards (`ray_private.Deployment`), and those that can be reached join (`shard_client`); over the same
link they say what they hold and how busy they are (`feed`); `octavo.routing` decides. A request that finds every shard
full waits here, in order of arrival. Serve is told of all of them, for it scales by what waits and runs, but never
asked: a handle call takes 0.8 ms of CPU at its two ends (docs/serve_cost.md), a decision less than a tenth of that.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AbstractContextManager
from typing import Protocol

from octavo.errors import EngineDead
from octavo.request import Placement, Request
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.gateway.link import Link
from octavo_serve.ray_private import Replica


class Books(Protocol):
    """What a picker needs of `octavo_serve.ray_private.Deployment`."""

    name: str
    available: bool

    def asked(self) -> None: ...

    def queued(self, again: bool) -> AbstractContextManager[None]: ...

    def started(self, replica: Replica) -> None: ...

    def ended(self, replica: Replica) -> None: ...

    async def close(self) -> None: ...


class Picked:
    """A shard picked for a request, and the request on everybody's books until `ended`.

    Attributes:
        link: to the shard.
        placement: what was decided, and why.
    """

    def __init__(self, picker: Picker, replica: Replica, link: Link, placement: Placement) -> None:
        self.link = link
        self.placement = placement
        self._picker = picker
        self._replica = replica

    def ended(self, *, ran: bool) -> None:
        """The request does not run there, or no longer; to be called once.

        Args:
            ran: whether it came as far as a token, so that its prompt is in the shard's cache.
        """
        self._picker.ended(self._replica, self.placement.ticket, ran)

    def gone(self) -> None:
        """The shard does not take requests: pick it no more, until it joins again."""
        self._picker.leave(self._replica.name, self.link)


class Picker:
    """Picks shards of one model, none of which gets more than its capacity from here. All in one event loop.

    Args:
        routing: how to decide.
        books: the shards' deployment.

    Attributes:
        router: what is known of the shards.
        links: to those that can be picked, by name.
    """

    def __init__(self, routing: RoutingConfig, books: Books) -> None:
        self.router = Router(routing)
        self._books = books
        self.links: dict[str, Link] = {}
        self._replicas: dict[str, Replica] = {}
        self._running: Counter[str] = Counter()
        self._first_list = asyncio.Event()
        self._turn = asyncio.Lock()  # those that wait for room take turns
        self._room = asyncio.Event()

    async def pick(self, request: Request) -> Picked:
        """The shard that the router finds best; waits while none has room, or there is none.

        Raises:
            EngineDead: the deployment has failed.
        """
        if not self._first_list.is_set():
            await self._first_list.wait()
        self._books.asked()
        candidates = self._with_room()
        if not candidates or self._turn.locked():
            candidates = await self._wait_for_room(request)
        placement = self._route(request, candidates)
        replica = self._replicas[placement.shard]
        self._running[replica.name] += 1
        self._books.started(replica)
        return Picked(self, replica, self.links[replica.name], placement)

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
        """Follow the shards no more."""
        await self._books.close()

    def _route(self, request: Request, names: list[str]) -> Placement:
        query = Query(len(request.prompt_token_ids), request.params.num_sequences, request.session)
        ticket, chain = request.request_id, request.block_hashes or []
        choice = self.router.route(ticket, chain, query, names, time.monotonic())
        return Placement(ticket, choice.order[0], choice.reason, choice.cached, choice.score.first_token)

    async def _wait_for_room(self, request: Request) -> list[str]:
        with self._books.queued(again=request.emitted is not None):
            async with self._turn:
                while not (candidates := self._with_room()):
                    await self._news()
                return candidates

    async def _news(self) -> None:
        """Wait until something has changed."""
        if not self._books.available:
            raise EngineDead(f"{self._books.name} has failed; see the server's log")
        self._room.clear()
        await self._room.wait()

    def _with_room(self) -> list[str]:
        return [name for name, replica in self._replicas.items() if self._running[name] < replica.capacity]

    def ended(self, replica: Replica, ticket: str, ran: bool) -> None:
        """A request no longer runs at a shard."""
        self._running[replica.name] -= 1
        if not self._running[replica.name]:
            del self._running[replica.name]
        self._room.set()
        self._books.ended(replica)
        self.router.completed(ticket, ran=ran)
        self.router.settle(time.monotonic())  # else the last request of all would be counted until the next one

    def listed(self) -> None:
        """Serve has said which shards there are; those that can be reached join."""
        self._first_list.set()
        self._room.set()

    def join(self, replica: Replica, link: Link) -> None:
        """A shard can be picked from now on, if it could not be already."""
        name = replica.name
        if self._replicas.get(name) != replica:
            self._room.set()  # it may take more than before
        self._replicas[name] = replica
        if self.links.get(name) is link:
            return
        self.links[name] = link
        self.router.join(name, time.monotonic())
        link.tell(self.router, name)
        self._room.set()

    def leave(self, name: str, link: Link | None = None) -> None:
        """A shard cannot be picked any more; only if it is picked over this link, where one is given."""
        if name in self.links and link in (None, self.links[name]):
            self.links.pop(name).tell(None, name)
            del self._replicas[name]
            self.router.leave(name)
