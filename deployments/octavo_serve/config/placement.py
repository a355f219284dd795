"""Computes whether shards can be placed. Ray itself waits for ever without saying anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Resources = Mapping[str, float]
"""Amounts by Ray's names of resources: {"CPU": 8, "GPU": 2}."""

Strategy = Literal["STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"]


@dataclass(frozen=True, slots=True)
class Group:
    """The placement group of one shard.

    Attributes:
        bundle: resources of each rank.
        ranks: number of ranks, each with one bundle.
        strategy: STRICT_PACK puts all on one node, STRICT_SPREAD each on a different node; the others are preferences.
    """

    bundle: Resources
    ranks: int
    strategy: Strategy


_UNLIMITED = 1_000_000  # bundles per node if a bundle needs no resources


def unplaceable(group: Group, shards: int, nodes: Sequence[Resources]) -> str | None:
    """Why the cluster could not hold this many shards even if nothing else ran on it; None if it could.

    Args:
        shards: number of placement groups at once.
        nodes: what each node that is alive has in all.
    """
    room = [_bundles(node, group.bundle) for node in nodes]
    fits = _groups(room, group)
    if fits >= shards:
        return None
    where = {"STRICT_PACK": " on one node", "STRICT_SPREAD": " on different nodes"}.get(group.strategy, "")
    asked = f"{shards} x {group.ranks} ranks of {_words(group.bundle)} each{where}"
    has = [_words({name: node.get(name, 0) for name in group.bundle}) for node in nodes]
    return f"the cluster has room for {fits} of its {shards} shards: asked for {asked}; the nodes have {', '.join(has)}"


def most_shards(group: Group, kept: Sequence[Group], nodes: Sequence[Resources]) -> int:
    """How many shards fit beside the placement groups in `kept`.

    Args:
        kept: placement groups of others that must always fit; they are placed where they leave the most room.
        nodes: what each node that is alive has in all.
    """
    free = [dict(node) for node in nodes]
    for each in sorted(kept, key=lambda other: -sum(other.bundle.values()) * other.ranks):
        for node in _best_nodes(free, each):
            for name, amount in each.bundle.items():
                node[name] = node.get(name, 0) - amount
    return _groups([_bundles(node, group.bundle) for node in free], group)


def _best_nodes(nodes: Sequence[dict[str, float]], group: Group) -> list[dict[str, float]]:
    """A node for each rank: the fullest nodes that have room; empty if the group does not fit."""
    room = sorted(
        ((bundles, i) for i, node in enumerate(nodes) if (bundles := _bundles(node, group.bundle))),
        key=lambda found: found[0],
    )
    if group.strategy == "STRICT_PACK":
        whole = [nodes[i] for bundles, i in room if bundles >= group.ranks]
        return whole[:1] * group.ranks
    each = 1 if group.strategy == "STRICT_SPREAD" else group.ranks
    places = [nodes[i] for bundles, i in room for _ in range(min(each, bundles))]
    return places[: group.ranks] if len(places) >= group.ranks else []


def _bundles(node: Resources, bundle: Resources) -> int:
    """How many of these bundles fit on a node."""
    # count in ten-thousandths as Ray does, because 0.3 / 0.1 is less than 3 in floating point
    amounts = [(round(node.get(name, 0) * 10_000), round(each * 10_000)) for name, each in bundle.items() if each > 0]
    return min((has // each for has, each in amounts), default=_UNLIMITED)


def _groups(room: list[int], group: Group) -> int:
    """How many groups fit on nodes that have room for `room[i]` bundles each."""
    if group.strategy == "STRICT_PACK":
        return sum(bundles // group.ranks for bundles in room)
    if group.strategy == "STRICT_SPREAD":
        # s groups need group.ranks nodes each, and a node holds one bundle of a group: sum(min(room, s)) >= s * ranks
        count = 0
        while sum(min(bundles, count + 1) for bundles in room) >= (count + 1) * group.ranks:
            count += 1
        return count
    return sum(room) // group.ranks


def _words(resources: Resources) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items())
