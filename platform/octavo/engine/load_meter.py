"""What a shard tells the autoscaler, from its statistics over time."""

from __future__ import annotations

import math

from octavo.config import EngineConfig
from octavo.engine.stats import EngineStats
from octavo.scaling.policy import RATE_SECONDS, ShardLoad, room

_DURATION_SECONDS = 30.0
"""How long a sequence runs changes slowly; a burst must not hide it."""


class LoadMeter:
    """Rates from counters; call `measure` every second or so."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._last: tuple[float, EngineStats] | None = None
        self._arriving = self._arrivals = self._ends = self._seconds = 0.0

    def measure(self, stats: EngineStats, now: float) -> ShardLoad:
        """The load now.

        Args:
            now: monotonic seconds; a call less than 10 ms after the last one changes no rate.
        """
        if self._last is None:
            self._last = now, stats
        elif (seconds := now - self._last[0]) >= 0.01:
            self._observe(self._last[1], stats, seconds)
            self._last = now, stats
        used = stats.blocks_total - stats.blocks_free
        alive = stats.num_running + stats.num_waiting
        context = stats.filled_slots / stats.num_running if stats.num_running else 0.0
        config = self._config
        fits = room(stats.cost, config.max_num_seqs, config.target_itl, context)
        each = self._seconds / self._ends if self._ends > 1e-6 else 0.0
        return ShardLoad(
            arriving=self._arriving,
            waiting=stats.seconds_of_work,
            sequences=alive,
            arrivals=self._arrivals,
            seconds_each=each,
            room=fits,
            kv_use=used / stats.blocks_total,
            first_token=stats.seconds_of_work + stats.num_waiting * each / fits,
        )

    def _observe(self, before: EngineStats, after: EngineStats, seconds: float) -> None:
        quick, slow = (1 - math.exp(-seconds / span) for span in (RATE_SECONDS, _DURATION_SECONDS))
        computed = (after.prompt_tokens - after.cached_tokens) - (before.prompt_tokens - before.cached_tokens)
        self._arriving += quick * (after.cost[1] * computed / seconds - self._arriving)
        self._arrivals += quick * ((after.sequences_arrived - before.sequences_arrived) / seconds - self._arrivals)
        self._ends += slow * ((after.sequences_finished - before.sequences_finished) / seconds - self._ends)
        self._seconds += slow * ((after.finished_seconds - before.finished_seconds) / seconds - self._seconds)
