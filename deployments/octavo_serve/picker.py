"""Asks Serve's router for a shard without calling it, and keeps Serve's books as a call would.

A handle call per request takes 0.8 ms of CPU at its two ends, 40 % of what a whole request may take where two cores
serve a thousand a second (docs/serve_cost.md); the choice alone takes a tenth of that. So the choice is made here:
`choose_replicas` of the deployment's router, among the shards that are not full. What else a call would do is done
here too: queued and running requests are counted as the autoscaler expects, the router is told when a request is
routed and when it has ended, and a dead replica is taken out at once.

This file is the only one that reaches into the private parts of Ray Serve 2.60.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from ray.serve._private.common import RequestMetadata
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from octavo.errors import EngineDead
from octavo.request import Request
from octavo_serve.channel import Address

ADDRESS = "address"
"""Key of a shard's metadata: the `Address` of its `Port`."""

POLL_SECONDS = 0.05  # between two looks for a shard with room while no request ends


class Picked:
    """A shard picked for a request, and the request on Serve's books until `ended`.

    Attributes:
        address: of the shard's `Port`.
    """

    def __init__(self, picker: Picker, replica: RunningReplica, request: Request) -> None:
        self.address = Address(*replica.replica_metadata[ADDRESS])
        self._picker = picker
        self._replica_id = replica.replica_id
        self._request = request

    def ended(self) -> None:
        """The request does not run there, or no longer; to be called once."""
        self._picker.ended(self._replica_id, self._request)

    def gone(self) -> None:
        """The shard does not answer, or leaves: pick it no more until the controller lists it anew."""
        self._picker.gone(self._replica_id)


class Picker:
    """Picks shards of one deployment, none of which gets more than `max_ongoing_requests` from here."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        router: Any = handle.options(method_name="describe")._router  # any method: it is never called
        self._serve = router._asyncio_router
        self._loop: asyncio.AbstractEventLoop = self._serve._event_loop
        self._running: Counter[ReplicaID] = Counter()
        self._turn = asyncio.Lock()  # those that wait for room take turns
        self._room = asyncio.Event()

    async def pick(self, request: Request) -> Picked:
        """The shard that the router finds best; waits while none has room, or there is none.

        Raises:
            EngineDead: the deployment has failed.
        """
        metadata = RequestMetadata(request_id=request.request_id, internal_request_id=request.request_id)
        if not (initialized := self._serve._request_router_initialized).is_set():
            await self._on_its_loop(initialized.wait())
        with self._books.wrap_request_assignment(metadata):
            candidates = self._with_room()
            if not candidates or self._turn.locked():
                candidates = await self._wait_for_room(request)
            pending = PendingRequest(args=[request], kwargs={}, metadata=metadata)
            ranks = await self._on_its_loop(self._router.choose_replicas(candidates, pending))
        replica = self._least_busy(ranks, candidates)
        self._running[replica.replica_id] += 1
        self._books.inc_num_running_requests_for_replica(replica.replica_id)
        self._tell(self._router.on_request_routed, pending, replica.replica_id, None)
        return Picked(self, replica, request)

    def _least_busy(self, ranks: list[list[RunningReplica]], candidates: list[RunningReplica]) -> RunningReplica:
        """The shard with the fewest requests of the first rank that has room, as Serve takes it."""
        for rank in ranks:
            if free := [replica for replica in rank if self._has_room(replica)]:
                return min(free, key=lambda replica: self._running[replica.replica_id])
        return candidates[0]

    async def _wait_for_room(self, request: Request) -> list[RunningReplica]:
        with self._books.wrap_queued_request(request.emitted is not None, len(self._router.curr_replicas)):
            async with self._turn:
                while not (candidates := self._with_room()):
                    if not self._serve._deployment_available:
                        raise EngineDead(f"{self._serve.deployment_id} has failed; see the server's log")
                    self._room.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._room.wait(), POLL_SECONDS)
                return candidates

    def _with_room(self) -> list[RunningReplica]:
        replicas: list[RunningReplica] = list(self._router.curr_replicas.values())
        return list(filter(self._has_room, replicas))

    def _has_room(self, replica: RunningReplica) -> bool:
        return self._running[replica.replica_id] < replica.max_ongoing_requests

    def ended(self, replica_id: ReplicaID, request: Request) -> None:
        """A request no longer runs at a shard."""
        self._running[replica_id] -= 1
        if not self._running[replica_id]:
            del self._running[replica_id]
        self._room.set()
        self._books.dec_num_running_requests_for_replica(replica_id)
        self._tell(self._router.on_request_completed, replica_id, request.request_id)

    def gone(self, replica_id: ReplicaID) -> None:
        """A shard does not answer, or leaves."""
        self._tell(self._router.on_replica_actor_died, replica_id)

    @property
    def _router(self) -> Any:
        return self._serve.request_router

    @property
    def _books(self) -> Any:
        return self._serve._metrics_manager

    async def _on_its_loop(self, call: Any) -> Any:
        """Plain `serve run` keeps its router in a thread of its own."""
        if self._loop is asyncio.get_running_loop():
            return await call
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    def _tell(self, hook: Callable[..., None], *arguments: object) -> None:
        if self._loop is asyncio.get_running_loop():
            hook(*arguments)
        else:
            self._loop.call_soon_threadsafe(hook, *arguments)
