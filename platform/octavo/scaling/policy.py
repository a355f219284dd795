"""Decides how many shards a model needs: more at once when work arrives, fewer slowly when it has gone.

Demand is measured in shards and summed over the fleet, so it does not depend on how many shards there are: adding one
never causes the next, and one busy shard among idle ones is left to the router.

    prompts    seconds of prompt work that arrive per second
    streams    sequences there are / sequences that one shard runs within its targets (`capacity`)
    coming     sequences there will be / the same, by Little's law: arrivals per second x seconds a sequence runs; a
               burst shows in its arrivals before it shows in its sequences
    demand   = max( (prompts + streams) / utilization,     present load, with some to spare
                    prompts + coming,                      load to come
                    seconds waiting / drain_within,        a queue that has to be gone in time
                    KV use / kv_utilization )              blocks, for long contexts

Up: to ceil(demand) at once; by one more while even the best shard's first token is late. Down: to the highest
ceil(demand) of the last `down_after` seconds, so that noise around a whole number does not add and remove shards in
turn. To zero: after `zero_after` seconds without any work, however long `down_after` is. Lower and upper bounds are
applied by the caller (Ray applies its own around a policy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from octavo.cost_model import Cost

_QUIET = 0.01
"""Demand below this many shards counts as zero; exponentially averaged rates fall below it within 10 s."""

RATE_SECONDS = 2.0
"""Time constant of averaged arrivals: a burst of twenty times the rate shows 40 % of its height after a second."""

Reason = Literal["load", "coming", "waiting", "kv", "first token", "held", "kept", "quiet", "stale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLoad:
    """What one shard reports.

    Attributes:
        seconds_arriving: seconds of prompt work that arrive per second.
        seconds_waiting: seconds of work in the backlog (`octavo.load.ShardState.backlog_seconds`).
        sequences: running and waiting.
        arrivals: sequences that arrive per second, over the last `RATE_SECONDS`.
        seconds_each: how long a sequence runs, on average; 0.0 when none has ended yet.
        capacity: sequences that one shard runs at once within its targets (see `capacity`); at least 1.
        kv_use: share of KV blocks that sequences hold, 0 to 1.
        first_token: predicted seconds until a prompt that comes now begins (`octavo.load.ShardState.start_seconds`).
        age: seconds since this was measured.
    """

    seconds_arriving: float
    seconds_waiting: float
    sequences: float
    arrivals: float
    seconds_each: float
    capacity: float
    kv_use: float
    first_token: float
    age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Targets for the fleet; all times in seconds.

    Attributes:
        utilization: share of a shard's time and capacity to use; the rest meets a burst while shards start.
        drain_within: the fleet must be able to compute its backlog in this time.
        kv_utilization: share of KV blocks that may be held.
        ttft: one more shard is asked for while every shard predicts its first token later than this.
        down_after: demand must have been lower for this long before shards leave.
        zero_after: seconds without a request before all shards leave; `down_after` does not lengthen it, but after a
            high load the averaged rates take up to ten seconds to fall.
        stale_after: a report older than this is not believed.
    """

    utilization: float = 0.8
    drain_within: float = 2.0
    kv_utilization: float = 0.8
    ttft: float = 1.0
    down_after: float = 20.0
    zero_after: float = 60.0
    stale_after: float = 5.0


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What `decide` keeps between calls.

    Attributes:
        peaks: (time, shards wanted) in falling order of the second: the sliding maximum over `down_after` seconds.
        quiet_since: time since which there has been no sequence and nothing has come; None while there is one.
        demand: of the last decision.
        held: requests that no shard had accepted, averaged over `RATE_SECONDS`, and the time of that average.
    """

    peaks: tuple[tuple[float, int], ...] = ()
    quiet_since: float | None = None
    demand: float = 0.0
    held: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How many shards, why, and the state for the next call.

    Attributes:
        replicas: shards to have.
        reason: "load", "coming", "waiting", "kv", "first token", "held": the term that asks for this many; "kept":
            fewer would do, but not for long enough yet; "quiet": there is no work; "stale": no report is recent enough,
            so nothing changes.
        demand: the present demand, in shards.
        state: for the next call.
    """

    replicas: int
    reason: Reason
    demand: float
    state: ScalingState = field(repr=False)


def capacity(cost: Cost, max_num_seqs: int, target_itl: float | None, context: float) -> float:
    """Sequences that one shard decodes at once within `target_itl`.

    Args:
        cost: the shard's own cost model.
        context: tokens a sequence attends to, on average.
    """
    each = cost.token + cost.sequence + (cost.attended + cost.context) * context
    if target_itl is None or each <= 0:
        return max_num_seqs
    return min(max_num_seqs, max(1.0, (target_itl - cost.step) / each))


def decide(
    shards: Sequence[ShardLoad],
    *,
    now: float,
    running: int,
    target: int,
    held: float,
    targets: Targets,
    state: ScalingState,
) -> ScalingDecision:
    """Shards to have from now on.

    Args:
        shards: the running shards' latest reports; a new shard may not have one yet.
        now: monotonic or wall seconds; only differences count.
        running: shards that serve.
        target: shards asked for so far, those that are starting included.
        held: requests that no shard has accepted yet.
        targets: what to hold.
        state: of the last decision.
    """
    believed = [shard for shard in shards if shard.age <= targets.stale_after]
    if target and not believed:  # shards that are starting, or cannot be seen: nothing is known that could change it
        return ScalingDecision(target, "stale", 0.0, ScalingState(((now, target),), held=(held, now)))
    # A shard with a stale report is assumed to carry the average load; one that never reported is assumed idle.
    queue = _averaged(state.held, held, now)
    growth = (held - queue[0]) / RATE_SECONDS  # per second: the derivative, averaged as arrivals at shards are
    demand, reason = _demand(believed, len(shards) / max(1, len(believed)), held, growth, targets)
    idle = not held and not any(shard.sequences for shard in believed)
    wanted = 0 if idle and demand < _QUIET else math.ceil(demand - 1e-9)
    if wanted <= target == running == len(believed) and _late(believed, targets):
        wanted, reason = target + 1, "first token"
    peaks = _with_peak(state.peaks or ((now, target),), now, wanted, targets.down_after)
    after = ScalingState(peaks, _quiet_since(state, now, demand) if idle else None, demand, queue)
    return _settled(wanted, reason, demand, target, now, targets, after)


def _quiet_since(state: ScalingState, now: float, demand: float) -> float:
    """Since when no shard has had a sequence: rates that rise betray one that came and went between two reports."""
    return now if state.quiet_since is None or demand > state.demand else state.quiet_since


def _late(shards: Sequence[ShardLoad], targets: Targets) -> bool:
    return bool(shards) and min(shard.first_token for shard in shards) > targets.ttft


def _averaged(before: tuple[float, float], held: float, now: float) -> tuple[float, float]:
    average, then = before
    return held + (average - held) * math.exp(min(0.0, then - now) / RATE_SECONDS), now


def _demand(
    shards: Sequence[ShardLoad], scale: float, held: float, growth: float, targets: Targets
) -> tuple[float, Reason]:
    streams = sum(shard.sequences / shard.capacity for shard in shards)
    streams += held / max((shard.capacity for shard in shards), default=math.inf)
    arriving = sum(shard.seconds_arriving for shard in shards)
    terms: list[tuple[float, Reason]] = [
        (scale * (arriving + streams) / targets.utilization, "load"),
        (scale * (arriving + _coming(shards, growth)), "coming"),
        (scale * sum(shard.seconds_waiting for shard in shards) / targets.drain_within, "waiting"),
        (scale * sum(shard.kv_use for shard in shards) / targets.kv_utilization, "kv"),
        (1.0 if held else 0.0, "held"),
    ]
    return max(terms, key=lambda term: term[0])


def _coming(shards: Sequence[ShardLoad], growth: float) -> float:
    """Future demand of streams, in shards, if sequences keep arriving at the present rate, at the shards and at the
    gateways that hold them.

    Averaged over s seconds, the rate of a Poisson process of r per second has a standard deviation of sqrt(r / 2s). One
    standard deviation is subtracted: otherwise the sliding maximum of the noise would keep a sixth more shards at 10
    arrivals per second.
    """
    seconds = [shard.seconds_each for shard in shards if shard.seconds_each]
    if not seconds:
        return 0.0
    rate = max(0.0, growth + sum(shard.arrivals for shard in shards))
    surely = max(0.0, rate - math.sqrt(rate / (2 * RATE_SECONDS)))
    return surely * sum(seconds) / len(seconds) / (sum(shard.capacity for shard in shards) / len(shards))


def _with_peak(
    peaks: tuple[tuple[float, int], ...], now: float, wanted: int, window: float
) -> tuple[tuple[float, int], ...]:
    """Add a value to the sliding maximum; entries older than the window, or no larger than the new value, are
    removed."""
    return (*(peak for peak in peaks if peak[0] > now - window and peak[1] > wanted), (now, wanted))


def _settled(
    wanted: int, reason: Reason, demand: float, target: int, now: float, targets: Targets, state: ScalingState
) -> ScalingDecision:
    if wanted >= target and wanted > 0:
        return ScalingDecision(wanted, reason, demand, state)
    quiet = 0.0 if state.quiet_since is None else now - state.quiet_since
    over = wanted == 0 and quiet >= targets.zero_after
    replicas = 0 if over else min(target, max(1, state.peaks[0][1]))
    if replicas > wanted:
        reason = "kept"
    elif replicas == 0:
        reason = "quiet"
    return ScalingDecision(replicas, reason, demand, state)
