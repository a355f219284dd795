"""The adapter between Ray Serve's request router and `octavo.routing`: Ray's types here, plain names there.

Rules this class keeps, each of which is a hang or a hot loop when broken (Ray 2.60): `should_backoff` is set on every
call, the answer is never empty, nothing is raised, nothing blocks, and there is no `FIFOMixin` (it would give the
replica found for one request to the oldest waiting one). One instance lives in every process that holds a handle.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import weakref
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from octavo.config import unknown_key
from octavo.request import Placement, Request
from octavo.routing.policy import Wanted
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.feed import FeedSubscriber
from octavo_serve.shard import FEED
from octavo_serve.telemetry import watch_router

logger = logging.getLogger("ray.serve")


class PrefixRouter(RequestRouter):
    """Sends a request where `octavo.routing` says, and writes on it what was decided.

    `request_router_kwargs` are the model's name and the fields of `RoutingConfig`.
    """

    def initialize_state(self, *, model: str = "", **settings: Any) -> None:
        names = [field.name for field in dataclasses.fields(RoutingConfig)]
        for key in [key for key in settings if key not in names]:
            # to raise here would leave every request waiting
            logger.error(unknown_key(key, names, "router setting"))
            del settings[key]
        self.router = Router(RoutingConfig(**settings))
        self.feed = FeedSubscriber(self.router)
        self.followed: set[str] = set()
        watch_router(model, self.router)
        weakref.finalize(self, self.feed.close).atexit = False

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        request = _request(pending_request)
        if request is None:
            return [candidate_replicas]
        try:
            return self._rank(candidate_replicas, pending_request.metadata.internal_request_id, request)
        except Exception:  # an error here would leave the request waiting for ever
            logger.exception("Routing failed; any replica will do")
            return [candidate_replicas]

    def _rank(self, candidates: list[RunningReplica], ticket: str, request: Request) -> list[list[RunningReplica]]:
        by_name = {replica.replica_id.unique_id: replica for replica in candidates}
        wanted = Wanted(len(request.prompt_token_ids), request.params.num_sequences, request.session)
        choice = self.router.route(ticket, request.block_hashes or [], wanted, list(by_name), time.monotonic())
        request.placement = Placement(ticket, choice.order[0], choice.reason, choice.cached, choice.score.first_token)
        # one replica per rank: inside a rank Serve would pick by its own queue length
        return [[by_name[name]] for name in choice.order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        request, shard = _request(pending_request), replica_id.unique_id
        if request is not None and request.placement is not None and request.placement.shard != shard:
            # the first choice was full; that shard's report will count the request
            self.router.completed(request.placement.ticket)
            request.placement = dataclasses.replace(request.placement, shard=shard)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self.router.completed(internal_request_id)
        self.router.settle(time.monotonic())  # else the last request of all would be counted until the next one

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._follow(replicas)

    def _follow(self, replicas: list[RunningReplica]) -> None:
        """Listen to the shards there are."""
        names = {replica.replica_id.unique_id for replica in replicas}
        for gone in self.followed - names:
            self._leave(gone)
        for replica in replicas:
            name, address = replica.replica_id.unique_id, replica.replica_metadata.get(FEED)
            if name not in self.followed and address is not None:
                self.followed.add(name)
                self.router.join(name, time.monotonic())
                self.feed.listen(name, address)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._leave(replica_id.unique_id)

    def _leave(self, name: str) -> None:
        self.followed.discard(name)
        self.router.leave(name)
        self.feed.leave(name)


def _request(pending: PendingRequest) -> Request | None:
    """The request of a call that carries one."""
    first = pending.args[0] if pending.args else None
    return first if isinstance(first, Request) else None
