"""Which shard gets a request: the one that holds its prefix, unless that one is too busy.

Two regimes, one threshold:

    affinity   the shard to which the longest prefix of the request's block chain was routed before, as long as it has
               at most `max_imbalance` sequences more than the least busy shard: a cached block saves its
               prefill, an uneven queue costs waiting
    least busy otherwise: no shard knows the prefix, or the one that does is too far ahead

`RecentPrefixes` is what the caller remembers between requests: which block hashes were sent where. It is a guess (it
does not see the engines' evictions), bounded to `capacity` blocks, oldest out first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["prefix", "imbalance", "load"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes and why, with the numbers that decided it.

    Attributes:
        order: every shard, best first; a full shard is passed over for the next.
        reason: "prefix": it holds the longest prefix; "imbalance": the holder was too busy; "load": nobody holds one.
        matched_blocks: blocks of the request's chain that the first shard is believed to hold.
        load: sequences on the first shard before this request.
    """

    order: list[str]
    reason: Reason
    matched_blocks: int
    load: int


class RecentPrefixes:
    """Block hash -> shards it was routed to, bounded, least recently used out first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._shards_of: OrderedDict[bytes, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shards_of)

    def matched(self, chain: Sequence[bytes], shards: Iterable[str]) -> dict[str, int]:
        """Leading blocks of `chain` that were routed to each shard."""
        depth = dict.fromkeys(shards, 0)
        holders = set(depth)
        for position, block in enumerate(chain):
            holders &= self._shards_of.get(block, set())
            if not holders:
                break
            for shard in holders:
                depth[shard] = position + 1
        return depth

    def add(self, chain: Sequence[bytes], shard: str) -> None:
        """Remember that `chain` went to `shard`; its first block becomes the youngest, so chains shrink tail first."""
        for block in reversed(chain[: self.capacity]):
            self._shards_of.setdefault(block, set()).add(shard)
            self._shards_of.move_to_end(block)
        while len(self._shards_of) > self.capacity:
            self._shards_of.popitem(last=False)

    def forget(self, shard: str) -> None:
        """Drop a shard that is gone."""
        for block in [block for block, shards in self._shards_of.items() if shard in shards]:
            self._shards_of[block].discard(shard)
            if not self._shards_of[block]:
                del self._shards_of[block]


def choose(matched: Mapping[str, int], sequences: Mapping[str, int], max_imbalance: int) -> Choice:
    """Rank the shards for one request.

    Args:
        matched: shard -> leading blocks of the request it is believed to hold; its keys are all shards there are.
        sequences: shard -> sequences running, waiting or on their way there; a shard that is missing has none.
        max_imbalance: most sequences the prefix's holder may have above the least busy shard.

    Raises:
        ValueError: there is no shard.
    """
    if not matched:
        raise ValueError("there is no shard to choose from")
    load = {shard: sequences.get(shard, 0) for shard in matched}
    least = min(load.values())
    near_enough = [shard for shard in matched if load[shard] - least <= max_imbalance]
    best = max(near_enough, key=lambda shard: (matched[shard], -load[shard]))
    rest = sorted((shard for shard in matched if shard != best), key=lambda shard: (load[shard], -matched[shard]))
    longest = max(matched.values())
    reason: Reason = "load" if longest == 0 else "prefix" if matched[best] == longest else "imbalance"
    return Choice([best, *rest], reason, matched[best], load[best])
