"""A shard over several accelerators: starts the other ranks in its placement group.

The shard itself is rank 0 and uses bundle 0; ranks 1, 2, ... are actors in the other bundles. Ray ends them with the
placement group, and the group with the shard.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from octavo.errors import EngineDead

if TYPE_CHECKING:
    from octavo.execution.ranks import Invitation, Launch  # torch: 2 s that only a process with a rank should pay


def launch() -> Launch:
    """Start ranks as actors in the placement group of the shard in this process."""
    from octavo.execution.ranks import Launch

    return Launch(RankActors, str(get_node_ip_address()))  # type: ignore[no-untyped-call]


class Rank:
    """The actor of one rank but 0."""

    def __init__(self) -> None:
        see_own_gpus_only()

    def serve(self, invitation: Invitation) -> None:
        """Run a rank until rank 0 leaves."""
        from octavo.execution.ranks import serve_rank

        serve_rank(invitation)


class RankActors:
    """The ranks 1, 2, ... of the shard in this process, one in each bundle of its placement group after the first."""

    def __init__(self, invitations: Sequence[Invitation]) -> None:
        group = get_current_placement_group()
        if group is None or len(group.bundle_specs) != len(invitations) + 1:
            raise EngineDead(f"a shard of {len(invitations) + 1} ranks needs a placement group with a bundle for each")
        self._actors = [_start(group, invitation.rank) for invitation in invitations]
        # futures, because asking a Ray reference whether it is done blocks, and health checks run on an event loop
        self._ends = [
            actor.serve.remote(invitation).future() for actor, invitation in zip(self._actors, invitations, strict=True)
        ]

    def ended(self) -> str | None:
        """Which rank has ended, and how; None while all are alive."""
        for rank, end in enumerate(self._ends, 1):
            if end.done():
                return f"rank {rank} has ended: {end.exception() or 'rank 0 had left'}"
        return None

    def stop(self) -> None:
        """End the ranks that still run."""
        for actor in self._actors:
            ray.kill(actor)


def _start(group: PlacementGroup, rank: int) -> Any:
    """Start the actor of a rank with all resources of its bundle."""
    bundle = group.bundle_specs[rank]
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    options: dict[str, Any] = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
    return ray.remote(**options, scheduling_strategy=place)(Rank).remote()


def see_own_gpus_only() -> None:
    """Hide every GPU that Ray did not assign to this process: without this, an actor that requests none sees all (Ray
    2.60)."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
