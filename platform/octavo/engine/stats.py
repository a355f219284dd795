"""What an engine says about itself: gauges now, counters since it started."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from octavo.engine.load import Counters
from octavo.kvcache.tier import TierCounters
from octavo.load import ShardState


class AdapterStats(NamedTuple):
    """Of LoRA adapters.

    Attributes:
        loaded: that are in memory.
        loads: that were read, again where others had put them out.
        waiting: requests whose adapter is not there yet.
    """

    loaded: int = 0
    loads: int = 0
    waiting: int = 0


NO_ADAPTERS = AdapterStats()


@dataclass(frozen=True, slots=True)
class StateStats:
    """Of what recurrent layers keep of sequences.

    Attributes:
        count: states there is room for.
        free: that no sequence has, checkpoints among them.
        cached: checkpoints that no sequence has.
        num_bytes: of a state.
    """

    count: int = 0
    free: int = 0
    cached: int = 0
    num_bytes: int = 0


NO_STATES = StateStats()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot.

    Attributes:
        state: how busy the shard is; free blocks include the cached ones.
        counters: a copy.
        blocks_cached: KV blocks that no sequence holds and any may reuse.
        filled_slots: token slots that hold a token, of those in blocks that sequences hold.
        generation_tokens: sampled tokens.
        steps: count.
        adapters: of LoRA.
        tier: of blocks on a disk.
        states: of recurrent layers.
        peers: of blocks that other shards had.
        given: blocks that other shards got from here.
    """

    state: ShardState
    counters: Counters
    blocks_cached: int
    filled_slots: int
    generation_tokens: int
    steps: int
    adapters: AdapterStats = NO_ADAPTERS
    tier: TierCounters = field(default_factory=TierCounters)
    states: StateStats = NO_STATES
    peers: TierCounters = field(default_factory=TierCounters)
    given: int = 0

    @property
    def owned_slots(self) -> int:
        """Token slots in blocks that sequences hold; those that are not filled are waste."""
        return (self.state.blocks - self.state.blocks_free) * self.state.block_size
