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
from octavo.request import Request
from octavo.routing.policy import Choice, RecentPrefixes, choose
from octavo_serve.shard import SEQUENCES

logger = logging.getLogger("ray.serve")

UNCONFIRMED_SECONDS = 10.0
"""A chosen request that no replica has accepted by then was cancelled while it waited; Serve does not say so."""


class InFlight:
    """Sequences on their way to or running on each shard, as far as this process knows.

    A request counts from the moment a shard is chosen for it: waiting for the replica's answer would send a whole
    burst to one shard.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, tuple[str, int]] = {}
        self._chosen: OrderedDict[str, tuple[str, int, float]] = OrderedDict()

    def chosen(self, request_id: str, shard: str, sequences: int, now: float) -> None:
        self._chosen[request_id] = (shard, sequences, now)
        self._chosen.move_to_end(request_id)
        while self._chosen and next(iter(self._chosen.values()))[2] < now - UNCONFIRMED_SECONDS:
            self._chosen.popitem(last=False)

    def accepted(self, request_id: str, shard: str, sequences: int) -> None:
        self._chosen.pop(request_id, None)
        self._accepted[request_id] = (shard, sequences)

    def completed(self, request_id: str) -> None:
        self._chosen.pop(request_id, None)
        self._accepted.pop(request_id, None)

    def forget(self, shard: str) -> None:
        self._accepted = {request: on for request, on in self._accepted.items() if on[0] != shard}

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for shard, sequences in [*self._accepted.values(), *(entry[:2] for entry in self._chosen.values())]:
            counts[shard] = counts.get(shard, 0) + sequences
        return counts


class PrefixRouter(RequestRouter):
    """Sends a request to the shard that holds its prefix (see `octavo.routing.policy`).

    `request_router_kwargs` are `max_imbalance` and `remembered_blocks` of `settings.RouterSettings`.
    """

    def initialize_state(self, *, max_imbalance: int = 8, remembered_blocks: int = 65_536, **unknown: Any) -> None:
        for key in unknown:
            # to raise here would leave every request waiting
            logger.error(unknown_key(key, ["max_imbalance", "remembered_blocks"], "router setting"))
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
        chain, sequences = _wanted(pending)
        choice = choose(self.prefixes.matched(chain, by_name), self._load(by_name), self.max_imbalance)
        best = choice.order[0]
        self.in_flight.chosen(pending.metadata.internal_request_id, best, sequences, time.monotonic())
        self.prefixes.add(chain, best)
        return choice, [by_name[name] for name in choice.order]

    def _load(self, replicas: dict[str, RunningReplica]) -> dict[str, int]:
        """Sequences on each shard: what this process sent there, or what the shard last reported when others send."""
        own = self.in_flight.counts()
        return {
            name: max(own.get(name, 0), replica.routing_stats.get(SEQUENCES, 0)) for name, replica in replicas.items()
        }

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        chain, sequences = _wanted(pending_request)
        self.in_flight.accepted(pending_request.metadata.internal_request_id, replica_id.unique_id, sequences)
        self.prefixes.add(chain, replica_id.unique_id)

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


def _wanted(pending: PendingRequest) -> tuple[list[bytes], int]:
    """The block hashes the gateway computed and the sequences asked for; nothing for calls that carry no request."""
    request = pending.args[0] if pending.args else None
    return (request.block_hashes or [], request.params.num_sequences) if isinstance(request, Request) else ([], 0)
