"""What an engine says about itself: gauges now, counters since it started."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.cost_model import Cost


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot.

    Attributes:
        num_running, num_waiting: sequences.
        blocks_total, blocks_free, blocks_cached: KV blocks; free ones include the cached (reusable, evictable) ones.
        filled_slots, owned_slots: token slots that hold a token, of those in owned blocks; the rest is waste.
        sequences_arrived, sequences_finished: accepted since the start, and those of them that ended.
        finished_seconds: how long the ended ones had been running, in sum.
        prompt_tokens, cached_tokens: prompt tokens of admitted requests, and how many of them the cache held.
        generation_tokens: sampled tokens.
        preemptions, steps: counts.
        seconds_of_work: predicted time to compute all that is known but not computed.
        cost: the cost model's coefficients; zeros until it has seen enough steps.
    """

    num_running: int
    num_waiting: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int
    filled_slots: int
    owned_slots: int
    sequences_arrived: int
    sequences_finished: int
    finished_seconds: float
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    preemptions: int
    steps: int
    seconds_of_work: float
    cost: Cost
