from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cost_model import Cost
from octavo.scaling.policy import ScalingDecision, ScalingState, ShardLoad, Targets, capacity, decide

TARGETS = Targets()
IDLE = ShardLoad(
    seconds_arriving=0.0,
    seconds_waiting=0.0,
    sequences=0.0,
    arrivals=0.0,
    seconds_each=2.0,
    capacity=10.0,
    kv_use=0.0,
    first_token=0.05,
)


def once(shards: list[ShardLoad], *, target: int | None = None, held: float = 0.0) -> ScalingDecision:
    running = len(shards)
    return decide(
        shards,
        now=100.0,
        running=running,
        target=running if target is None else target,
        held=held,
        targets=TARGETS,
        state=ScalingState(),
    )


STEADY = replace(IDLE, seconds_arriving=0.2, sequences=4.0, arrivals=2.0)  # 0.2 + 4 / 10 of one shard
NEW = replace(IDLE, arrivals=20.0, seconds_each=0.0)
CASES = {
    "steady load keeps what there is": ([STEADY] * 3, 3, 0, 3, "load"),
    "streams that fill the room": ([replace(STEADY, sequences=10.0)], 1, 0, 2, "load"),
    "a burst shows in its arrivals first": ([replace(STEADY, arrivals=40.0)], 1, 0, 8, "coming"),
    "a new shard does not know how long sequences run": ([replace(STEADY, arrivals=20.0), NEW], 2, 0, 8, "coming"),
    "a queue has to be gone in time": ([replace(STEADY, seconds_waiting=9.0)], 1, 0, 5, "waiting"),
    "long contexts hold blocks": ([replace(STEADY, kv_use=0.9)] * 2, 2, 0, 3, "kv"),
    "late first tokens everywhere": ([replace(STEADY, first_token=3.0)] * 2, 2, 0, 3, "first token"),
    "late first tokens, but help is on its way": ([replace(STEADY, first_token=3.0)] * 2, 4, 0, 4, "kept"),
    "one hot shard among idle ones": ([replace(STEADY, first_token=9.0, sequences=9.0), IDLE, IDLE], 3, 0, 3, "kept"),
    "requests that no shard has room for": ([replace(STEADY, sequences=10.0)], 1, 30, 6, "load"),
    "nobody can be believed": ([replace(STEADY, age=60.0, seconds_waiting=99.0)] * 2, 2, 0, 2, "stale"),
    "one of two cannot be believed": ([STEADY, replace(IDLE, age=60.0)], 2, 0, 2, "load"),
    "a request is held and there is no shard": ([], 0, 1, 1, "held"),
    "no shard and nothing to do": ([], 0, 0, 0, "quiet"),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str) -> None:
    shards, target, held, replicas, reason = CASES[case]
    decision = once(shards, target=target, held=held)
    assert (decision.replicas, decision.reason) == (replicas, reason), decision


def test_a_new_shard_without_a_report_counts_as_empty() -> None:
    """Taking it to be as busy as the others would ask for more with every shard that comes."""
    busy = replace(STEADY, sequences=30.0)
    alone = once([busy])
    joined = decide([busy], now=100.0, running=4, target=4, held=0, targets=TARGETS, state=ScalingState())
    assert joined.demand == alone.demand


def test_arrivals_that_wait_for_a_shard_count_too() -> None:
    """A full shard gets no more of them, so it says that few arrive."""
    full = replace(STEADY, seconds_each=20.0)
    before = once([full])
    assert before.reason == "coming"
    after = decide([full], now=100.5, running=1, target=1, held=20, targets=TARGETS, state=before.state)
    assert after.reason == "coming"
    assert after.replicas >= 3 * before.replicas


def test_capacity() -> None:
    cost = Cost(0.010, 0.0, 0.0005, 0.4e-6, 0.6e-6)
    assert capacity(cost, 64, None, 1000.0) == 64
    assert capacity(cost, 64, 0.025, 1000.0) == pytest.approx(10)
    assert capacity(cost, 64, 0.005, 1000.0) == 1  # too tight for any: one stream still has to run
    assert capacity(Cost(0.01, 0.0, 0.0, 0.0, 0.0), 64, 0.02, 1000.0) == 64


def run(
    shards: list[ShardLoad],
    seconds: int,
    *,
    target: int,
    state: ScalingState,
    start: float = 0.0,
    targets: Targets = TARGETS,
) -> tuple[int, ScalingState, list[int]]:
    """The same reports, decision after decision, with as many shards as were asked for."""
    history = []
    for tenth in range(10 * seconds):
        now = start + tenth / 10
        decision = decide(shards, now=now, running=target, target=target, held=0, targets=targets, state=state)
        target, state = decision.replicas, decision.state
        history.append(target)
    return target, state, history


def test_rates_that_decay_are_quiet_and_a_lone_stream_is_not() -> None:
    target, _, _ = run([replace(IDLE, arrivals=1e-4, seconds_arriving=1e-9)], 90, target=1, state=ScalingState())
    assert target == 0
    target, _, _ = run([replace(IDLE, sequences=1.0, capacity=512.0)], 90, target=1, state=ScalingState())
    assert target == 1


def test_shards_that_are_starting_are_not_sent_away() -> None:
    """Before the first of them serves, nobody reports that there is nothing to do."""
    state = ScalingState()
    for second in range(300):
        decision = decide([], now=second, running=0, target=2, held=0, targets=TARGETS, state=state)
        assert decision.replicas == 2
        state = decision.state


def test_down_slowly_and_only_to_the_highest_of_the_window() -> None:
    target, state, _ = run([replace(STEADY, sequences=60.0)], 1, target=9, state=ScalingState())
    assert target == 9
    target, state, _ = run([replace(STEADY, sequences=30.0)], 10, target=9, state=state, start=1)
    assert target == 9
    target, state, _ = run([replace(STEADY, sequences=4.0)], 15, target=9, state=state, start=11)
    assert target == 4  # 20 s after the 60, within 20 s of the 30
    target, state, _ = run([replace(STEADY, sequences=4.0)], 15, target=5, state=state, start=26)
    assert target == 1


def test_to_zero_after_quiet_and_not_before() -> None:
    target, _, history = run([IDLE], 90, target=3, state=ScalingState())
    assert target == 0
    first = {replicas: history.index(replicas) / 10 for replicas in (1, 0)}
    assert first[1] == pytest.approx(TARGETS.down_after, abs=0.2)
    assert first[0] == pytest.approx(TARGETS.zero_after, abs=0.2)


@pytest.mark.parametrize("shards", [1, 3])
def test_to_zero_when_it_is_said_even_if_down_takes_longer(shards: int) -> None:
    targets = Targets(zero_after=6.0)
    busy = [replace(STEADY, sequences=10.0)] * shards
    target, state, _ = run(busy, 5, target=shards, state=ScalingState(), targets=targets)
    _, _, history = run([IDLE] * shards, 30, target=target, state=state, start=5, targets=targets)
    assert targets.down_after == 20.0
    assert history[:59] == [target] * 59
    assert history[61:] == [0] * (300 - 61)


def test_what_came_and_went_between_two_reports_is_work() -> None:
    """Seen by its rate alone, which then decays: the time to zero begins with it, not where its rate has gone."""
    state, target, gone = ScalingState(), 1, None
    for tenth in range(300):
        rate = math.exp((30 - tenth) / 20) if tenth >= 30 else 0.0
        decision = decide(
            [replace(IDLE, seconds_arriving=rate / 20)], now=tenth / 10, running=1, target=target, held=0,
            targets=Targets(zero_after=6.0), state=state,
        )  # fmt: skip
        target, state = decision.replicas, decision.state
        gone = tenth / 10 if target == 0 and gone is None else gone
    assert gone == pytest.approx(3 + 6, abs=0.2)


loads = st.builds(
    ShardLoad,
    seconds_arriving=st.floats(0, 3),
    seconds_waiting=st.floats(0, 30),
    sequences=st.floats(0, 200),
    arrivals=st.floats(0, 50),
    seconds_each=st.floats(0, 20),
    capacity=st.floats(1, 256),
    kv_use=st.floats(0, 1),
    first_token=st.floats(0, 0.9),
    age=st.floats(0, 4),
)


@given(st.lists(loads, min_size=1, max_size=6), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_constant_load_never_flaps(shards: list[ShardLoad], target: int) -> None:
    """At most one change for good: up at once, or down when the window has passed."""
    _, _, history = run(shards, 70, target=target, state=ScalingState())
    changes = [after - before for before, after in zip([target, *history], history, strict=False) if after != before]
    assert all(change > 0 for change in changes) or all(change < 0 for change in changes)
    assert len(changes) <= 2  # to one shard after `down_after`, from there to none after `zero_after`
    assert history[-1] == history[-50]


@given(st.lists(loads, max_size=6), st.integers(0, 40), st.floats(0, 5), st.floats(0, 1000))
@settings(max_examples=200, deadline=None)
def test_the_answer_is_a_number_of_shards_with_a_reason(
    shards: list[ShardLoad], target: int, held: float, now: float
) -> None:
    decision = decide(
        shards, now=now, running=len(shards), target=target, held=held, targets=TARGETS, state=ScalingState()
    )
    assert decision.replicas >= (1 if held else 0)
    assert decision.replicas <= max(target + 1, decision.demand + 1)
    if decision.reason == "kept":
        assert decision.demand <= decision.replicas <= target


@dataclass
class Shard:
    """A shard as a queue: each sequence is `prompt` seconds of prompt work, then `length` seconds of its stream."""

    ready: float
    queue: list[list[float]] = field(default_factory=list)  # arrived, prompt work left, stream seconds left

    CAPACITY = 10

    def advance(self, now: float, dt: float) -> list[float]:
        """First-token delays of the sequences whose prompt was finished now."""
        delays, budget = [], dt
        for sequence in self.queue[: self.CAPACITY]:
            if sequence[1] > 0:
                done = min(budget, sequence[1])
                sequence[1] -= done
                budget -= done
                if sequence[1] <= 0:
                    delays.append(now - sequence[0])
            else:
                sequence[2] -= dt
        self.queue = [sequence for sequence in self.queue if sequence[2] > 0]
        return delays

    def load(self, arrived: float) -> ShardLoad:
        waiting = sum(sequence[1] for sequence in self.queue)
        return ShardLoad(
            seconds_arriving=arrived * 0.05, seconds_waiting=waiting, sequences=len(self.queue), arrivals=arrived,
            seconds_each=2.0, capacity=self.CAPACITY, kv_use=len(self.queue) / 40, first_token=waiting,
        )  # fmt: skip


def test_a_burst_of_twenty_times_is_met_and_left() -> None:
    """Quiet, a minute at twenty times the rate, quiet: up at once, enough, and back; starting a shard takes 3 s."""
    rng = random.Random(7)
    shards, target, state, delays = [Shard(0.0)], 1, ScalingState(), {"burst": [], "late burst": [], "after": []}
    rate_seen, replicas = 0.0, []
    for tenth in range(1800):
        now = tenth / 10
        rate = 40.0 if 30 <= now < 90 else 2.0
        arrived = sum(rng.random() < rate / 1000 for _ in range(100))
        ready = [shard for shard in shards if shard.ready <= now]
        for _ in range(arrived):
            min(ready, key=lambda shard: len(shard.queue)).queue.append([now, 0.05, 2.0])
        for shard in ready:
            found = shard.advance(now, 0.1)
            delays["burst" if 30 <= now < 45 else "late burst" if 45 <= now < 90 else "after"] += found
        rate_seen += (arrived * 10 - rate_seen) * 0.05  # as the shards measure it: over about two seconds
        decision = decide(
            [shard.load(rate_seen / len(ready)) for shard in ready],
            now=now, running=len(ready), target=target, held=0, targets=TARGETS, state=state,
        )  # fmt: skip
        target, state = min(20, decision.replicas), decision.state
        shards += [Shard(now + 3.0) for _ in range(target - len(shards))]
        while len(shards) > target:  # the newest leave, and give what they have to the others
            leaving = shards.pop()
            for sequence in leaving.queue:
                shards[0].queue.append(sequence)
        replicas.append(target)
    by_second = replicas[::10]
    assert by_second[29] <= 2
    assert by_second[32] >= 10  # asked for within two seconds: 40 x (2 s / 10 + 0.05) / 0.7 = 14
    assert max(by_second) <= 20
    late = sorted(delays["late burst"])
    assert late[int(0.99 * len(late))] < 1.0
    assert by_second[-1] <= 2
    assert sum(after > before for before, after in itertools.pairwise(by_second[45:90])) <= 2  # the noise of arrivals
