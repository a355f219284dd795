"""What a shard tells the autoscaler: its state now, and rates from its counters over time."""

from __future__ import annotations

import math

from octavo.config import EngineConfig
from octavo.engine.stats import EngineStats
from octavo.scaling.policy import RATE_SECONDS, ShardLoad, capacity

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
        state = stats.state
        context = stats.filled_slots / state.num_running if state.num_running else 0.0
        return ShardLoad(
            seconds_arriving=self._arriving,
            seconds_waiting=state.backlog_seconds,
            sequences=state.num_sequences,
            arrivals=self._arrivals,
            seconds_each=self._seconds / self._ends if self._ends > 1e-6 else 0.0,
            capacity=capacity(state.cost, state.max_num_seqs, self._config.target_itl, context),
            kv_use=1 - state.blocks_free / state.blocks,
            first_token=state.start_seconds(),
        )

    def _observe(self, before: EngineStats, after: EngineStats, seconds: float) -> None:
        quick, slow = (1 - math.exp(-seconds / span) for span in (RATE_SECONDS, _DURATION_SECONDS))
        now, then = after.counters, before.counters
        computed = (now.prompt_tokens - now.cached_tokens) - (then.prompt_tokens - then.cached_tokens)
        self._arriving += quick * (after.state.cost.token * computed / seconds - self._arriving)
        self._arrivals += quick * ((now.arrived - then.arrived) / seconds - self._arrivals)
        self._ends += slow * ((now.finished - then.finished) / seconds - self._ends)
        self._seconds += slow * ((now.finished_seconds - then.finished_seconds) / seconds - self._seconds)
