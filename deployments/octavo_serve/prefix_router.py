"""The adapter between Ray Serve's request router and `octavo.routing`: Ray's types here, plain names there.

Rules this class keeps, each of which is a hang or a hot loop when broken (Ray 2.60): `should_backoff` is set on every
call, the answer is never empty, nothing is raised, nothing blocks, and there is no `FIFOMixin` (it would give the
replica found for one request to the oldest waiting one). One instance lives in every process that holds a handle.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from octavo.config import unknown_key
from octavo.errors import ConfigError
from octavo.request import Request
from octavo.routing.policy import Choice, RecentPrefixes, choose

logger = logging.getLogger("ray.serve")

UNCONFIRMED_SECONDS = 10.0
"""A chosen request that no replica has accepted by then was cancelled while it waited; Serve does not say so."""


class InFlight:
    """Requests on their way to or running on each shard, as far as this process knows.

    A request counts from the moment it is chosen for: waiting for the replica's answer would send a whole burst to
    one shard.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, str] = {}
        self._chosen: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def chosen(self, request_id: str, shard: str, now: float) -> None:
        self._chosen[request_id] = (shard, now)
        self._chosen.move_to_end(request_id)
        while self._chosen and next(iter(self._chosen.values()))[1] < now - UNCONFIRMED_SECONDS:
            self._chosen.popitem(last=False)

    def accepted(self, request_id: str, shard: str) -> None:
        self._chosen.pop(request_id, None)
        self._accepted[request_id] = shard

    def completed(self, request_id: str) -> None:
        self._chosen.pop(request_id, None)
        self._accepted.pop(request_id, None)

    def forget(self, shard: str) -> None:
        self._accepted = {request: on for request, on in self._accepted.items() if on != shard}

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for shard in [*self._accepted.values(), *(shard for shard, _ in self._chosen.values())]:
            counts[shard] = counts.get(shard, 0) + 1
        return counts


class PrefixRouter(RequestRouter):
    """Sends a request to the shard that holds its prefix (see `octavo.routing.policy`).

    Router settings (`request_router_kwargs` in YAML): `max_imbalance`, requests in flight, and `remembered_blocks`.
    """

    def initialize_state(self, *, max_imbalance: int = 8, remembered_blocks: int = 262_144, **unknown: Any) -> None:
        for key in unknown:
            raise ConfigError(unknown_key(key, ["max_imbalance", "remembered_blocks"], "router setting"))
        self.max_imbalance = max_imbalance
        self.prefixes = RecentPrefixes(remembered_blocks)
        self.in_flight = InFlight()
        self.turn = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        try:
            choice, ranked = self._rank(candidate_replicas, pending_request)
        except Exception:  # an error here would leave the request waiting for ever
            logger.exception("Routing failed; any replica will do")
            return [candidate_replicas]
        logger.debug("routed %s: %s", pending_request.metadata.internal_request_id, choice)
        # one replica per rank: inside a rank Serve would pick by its own queue length
        return [[replica] for replica in ranked]

    def _rank(self, candidates: list[RunningReplica], pending: PendingRequest) -> tuple[Choice, list[RunningReplica]]:
        self.turn += 1
        start = self.turn % len(candidates)  # equally good shards take turns
        by_name = {replica.replica_id.unique_id: replica for replica in candidates[start:] + candidates[:start]}
        choice = choose(self.prefixes.matched(_chain(pending), by_name), self.in_flight.counts(), self.max_imbalance)
        self.in_flight.chosen(pending.metadata.internal_request_id, choice.order[0], time.monotonic())
        self.prefixes.add(_chain(pending), choice.order[0])
        return choice, [by_name[name] for name in choice.order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self.in_flight.accepted(pending_request.metadata.internal_request_id, replica_id.unique_id)
        self.prefixes.add(_chain(pending_request), replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self.in_flight.completed(internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        gone = set(self.curr_replicas) - {replica.replica_id for replica in replicas}
        super().update_replicas(replicas)
        for replica_id in gone:
            self._forget(replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._forget(replica_id.unique_id)

    def _forget(self, shard: str) -> None:
        self.prefixes.forget(shard)
        self.in_flight.forget(shard)


def _chain(pending: PendingRequest) -> list[bytes]:
    """The block hashes the gateway computed, for calls that carry a request."""
    request = pending.args[0] if pending.args else None
    return request.block_hashes or [] if isinstance(request, Request) else []
