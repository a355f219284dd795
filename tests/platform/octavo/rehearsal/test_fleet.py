"""Adversaries in simulated time, before real schedulers, caches and routers: no herd, no stall, the index right."""

from __future__ import annotations

import itertools
import os
import random
from collections import defaultdict
from functools import partial
from statistics import median
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.fair_queues import seconds_of
from octavo.engine.plan import StepPlan
from octavo.fairness import TURN
from octavo.rehearsal.fleet import Fleet, SimulatedShard, Trip
from octavo.rehearsal.simulated import Profile
from octavo.request import Request, SamplingParams
from octavo.routing.router import RoutingConfig

# 6.4 ms per step, 30 us per token: an 8B model on an H100; 1,000 blocks hold 16,000 tokens
MACHINE = Profile("test", Cost(6.4e-3, 30.3e-6, 10e-6, 1.06e-9, 48.9e-9), 1, 16_000, 8192, ())


def fleet(shards: int = 8, policy: str = "prefix_affinity", gateways: int = 1, **engine: object) -> Fleet:
    settings: dict[str, object] = {"max_num_batched_tokens": 2048, "max_num_seqs": 32, **engine}
    return Fleet(
        MACHINE,
        shards,
        EngineConfig(**settings),
        RoutingConfig(policy=policy),
        gateways=gateways,  # type: ignore[arg-type]
    )


def words(seed: object, count: int) -> list[int]:
    drawn = random.Random(str(seed))
    return [drawn.randrange(32_000) for _ in range(count)]


def ask(where: Fleet, at: float, prompt: list[int], output: int = 8) -> None:
    name = f"{at:.6f}/{len(where.trips)}/{random.random()}"
    params = SamplingParams(max_tokens=output, ignore_eos=True)
    where.at(at, lambda: where.send(Request(request_id=name, prompt_token_ids=prompt, params=params)) and None)


def strangers(where: Fleet, rate: float, seconds: float, start: float = 0.0, length: int = 500) -> None:
    drawn = random.Random(7)
    at = start
    while (at := at + drawn.expovariate(rate)) < start + seconds:
        ask(where, at, words(at, length))


def waits(trips: list[Trip]) -> list[float]:
    assert all(trip.first_token is not None and trip.finished is not None for trip in trips)
    return [trip.first_token - trip.sent for trip in trips if trip.first_token is not None]


def counts(where: Fleet) -> dict[str, int]:
    shards = [trip.shard for trip in where.trips.values()]
    return {name: shards.count(name) for name in where.shards}


def settle(where: Fleet) -> None:
    """Let everything end and the last reports arrive; then the index must equal the truth."""
    where.run()
    where.run(where.now + 1.0)
    assert where.is_exact()
    for shard in where.shards.values():
        shard.engine.check_integrity()
    for router in where.routers:
        router.settle(where.now)
        assert sum(known.in_flight for known in router.shards.values()) == 0


def test_one_prefix_shared_by_everybody() -> None:
    where = fleet()
    prefix = words("system", 2000)
    for number in range(400):
        ask(where, number / 200, prefix + words(number, 100))
    settle(where)
    spread = counts(where)
    assert max(spread.values()) < 3 * 400 / 8
    assert min(spread.values()) > 0
    held = sum(trip.cached for trip in where.trips.values()) / (400 * 2100)
    assert held > 0.9
    lonely = fleet(policy="round_robin")
    for number in range(400):
        ask(lonely, number / 200, prefix + words(number, 100))
    settle(lonely)
    assert median(waits(list(where.trips.values()))) <= 1.1 * median(waits(list(lonely.trips.values())))


def test_a_burst_of_identical_prompts() -> None:
    where = fleet()
    for _ in range(200):
        ask(where, 1.0, words("same", 1500))
    settle(where)
    assert max(counts(where).values()) < 100
    alone = 6.4e-3 + 1500 * 31e-6 + 0.01
    assert max(waits(list(where.trips.values()))) < 20 * alone


def test_a_slow_shard_loses_its_traffic_by_itself() -> None:
    where = fleet(rehearsal_speed=[1.0, 1.0, 0.2])
    strangers(where, rate=100, seconds=4)
    settle(where)
    spread = counts(where)
    fair = sum(spread.values()) / 8
    assert spread["shard2"] < 0.5 * fair
    assert all(spread[name] > 0.8 * fair for name in spread if name != "shard2")


def test_events_cut_for_ten_seconds() -> None:
    where = fleet(shards=4)
    prefixes = [words(f"prefix {number}", 1000) for number in range(4)]
    for number in range(580):
        ask(where, number / 25, prefixes[number % 4] + words(number, 50))
    where.at(8.0, lambda: where.cut("shard1", 18.0))
    settle(where)
    router = where.routers[0]
    trips = list(where.trips.values())
    during = [trip for trip in trips if 10.5 < trip.sent < 18 and trip.shard == "shard1"]
    after = [trip for trip in trips if trip.sent > 18.5 and trip.shard == "shard1"]
    assert all(trip.choice.reason == "stale" for trip in during)
    assert after
    assert all(trip.choice.reason != "stale" for trip in after)
    assert router.shards["shard1"].blocks.gaps == 1
    assert max(waits(trips)) < 1.0


def test_a_shard_is_killed_and_replaced() -> None:
    where = fleet(shards=4)
    strangers(where, rate=60, seconds=10)
    where.at(4.0, lambda: [ask(where, 4.0, request.prompt_token_ids) for request in kill("shard0")] and None)
    where.at(6.0, lambda: where.start("shard4") and None)

    def kill(name: str) -> list[Request]:
        lost = where.kill(name)
        for request in lost:
            del where.trips[request.request_id]
        return lost

    settle(where)
    late = [trip.shard for trip in where.trips.values() if trip.sent > 6.1]
    assert "shard0" not in late
    assert late.count("shard4") > len(late) / 8
    assert max(waits(list(where.trips.values()))) < 1.0


def test_two_gateways_at_once() -> None:
    where = fleet(gateways=2)
    prefixes = [words(f"prefix {number}", 1000) for number in range(16)]
    drawn = random.Random(3)
    for number in range(400):
        ask(where, number / 100, drawn.choice(prefixes) + words(number, 100))
    settle(where)
    spread = counts(where)
    assert max(spread.values()) < 2.5 * 50
    one = fleet()
    drawn = random.Random(3)
    for number in range(400):
        ask(one, number / 100, drawn.choice(prefixes) + words(number, 100))
    settle(one)
    p90 = sorted(waits(list(where.trips.values())))[360]
    assert p90 < 2 * sorted(waits(list(one.trips.values())))[360]


def test_without_sharing_affinity_costs_nothing() -> None:
    late = {}
    for policy in ("prefix_affinity", "least_loaded"):
        where = fleet(policy=policy)
        strangers(where, rate=200, seconds=2)
        settle(where)
        late[policy] = sorted(waits(list(where.trips.values())))[int(0.99 * len(where.trips))]
    assert late["prefix_affinity"] <= 1.05 * late["least_loaded"]


def test_predictions_hold() -> None:
    """Once the shards have measured some steps: half of the first tokens within 5 ms, nine tenths within 50."""
    where = fleet()
    prefixes = [words(f"prefix {number}", 1000) for number in range(16)]
    drawn = random.Random(5)
    for number in range(600):
        ask(where, number / 150, drawn.choice(prefixes) + words(number, 200), output=30)
    settle(where)
    trips = list(where.trips.values())[200:]
    wrong = sorted(abs(wait - trip.choice.score.first_token) for wait, trip in zip(waits(trips), trips, strict=True))
    assert wrong[len(wrong) // 2] < 0.005
    assert wrong[len(wrong) * 9 // 10] < 0.05
    assert sum(trip.cached == trip.choice.cached for trip in trips) > 0.9 * len(trips)


@settings(max_examples=int(os.environ.get("OCTAVO_FUZZ_EXAMPLES", "8")), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_gap_between_tenants_who_wait_is_bounded(seed: int) -> None:
    """In seconds of the cost model over weights: four turns of the longest step, for the lesser weight of the two."""
    drawn = random.Random(seed)
    names = {f"t{number}": drawn.choice([1.0, 1.0, 2.0, 4.0]) for number in range(drawn.randint(2, 4))}
    sizes = {"max_num_seqs": drawn.choice([4, 8, 16]), "max_num_batched_tokens": drawn.choice([128, 256, 512])}
    where = Watched(MACHINE, 1, EngineConfig(scheduling_policy="fair", **sizes), RoutingConfig())
    where.weights = names
    for name, weight in names.items():
        prompt, output = drawn.randint(20, 1500), drawn.randint(1, 60)
        for number in range(drawn.randint(5, 25)):
            params = SamplingParams(max_tokens=drawn.randint(1, output), ignore_eos=True)
            tokens = words((seed, name, number), drawn.randint(1, prompt))
            asked = Request(
                request_id=f"{name}/{number}", prompt_token_ids=tokens, params=params, tenant=name, weight=weight
            )
            where.at(drawn.random() / 3, partial(where.send, asked))
    where.run()
    assert where.widest <= 4 * TURN * where.longest


class Watched(Fleet):
    """A fleet of one shard, in which the gap between any two tenants is looked at while both wait."""

    def __init__(self, *arguments: Any) -> None:
        self.weights: dict[str, float] = {}
        self.widest = self.longest = 0.0
        self._had = defaultdict[str, float](float)
        self._gaps: dict[tuple[str, str], tuple[float, float]] = {}
        super().__init__(*arguments)

    def _commit(self, shard: SimulatedShard, plan: StepPlan, seconds: float) -> None:
        scheduler = shard.engine.scheduler
        step = seconds_of(plan, scheduler.cost_model.published)
        super()._commit(shard, plan, seconds)
        for name, own in step.items():
            self._had[name] += own / self.weights[name]
        self.longest = max(self.longest, sum(step.values()))
        waiting = {seq.group.request.tenant for seq in scheduler._waiting}
        for pair in itertools.combinations(self.weights, 2):
            if not waiting.issuperset(pair):
                self._gaps.pop(pair, None)
                continue
            gap = self._had[pair[0]] - self._had[pair[1]]
            low, high = self._gaps.get(pair, (gap, gap))
            self._gaps[pair] = low, high = min(low, gap), max(high, gap)
            self.widest = max(self.widest, (high - low) * min(self.weights[name] for name in pair))


def test_streams_keep_out_of_the_way_of_prompts_that_take_longer_than_a_share_is_remembered() -> None:
    """One of 20 s in each 40 s, beside streams: from the second one on no stream runs where it is computed."""
    machine = Profile("test", Cost(3.5e-3, 1e-3, 5e-4, 4.5e-7, 2e-6), 1, 64_000, 16_000, ())
    where = Fleet(machine, 2, EngineConfig(max_num_seqs=64, target_itl=0.07, max_num_batched_tokens=1024),
                  RoutingConfig(apart_weight=1.0), link_bytes=1e5)  # fmt: skip
    for number in range(60):
        ask(where, 2.0 * number, words(number, 40), 600)
    for number in range(3):
        ask(where, 12.0 + 40 * number, words(f"long {number}", 8000), 20)
    where.run()
    trips = list(where.trips.values())
    long = [trip for trip in trips if len(trip.request.prompt_token_ids) == 8000][1:]
    for trip in long:
        prompts = trip.choice.prefill.order[0] if trip.choice.prefill else trip.shard
        beside = [it for it in trips if it.sent < trip.first_token and it.finished > trip.sent and it not in long]
        assert len(beside) > 5
        assert {it.shard for it in beside} == {"shard0", "shard1"} - {prompts}


def test_prompts_are_computed_apart_and_none_is_lost_with_their_shard() -> None:
    """Streams that come all the time, long prompts beside them, and a shard that dies in between."""
    machine = Profile("test", MACHINE.cost, 1, 64_000, 16_000, ())
    where = Fleet(machine, 2, EngineConfig(max_num_seqs=64, max_num_batched_tokens=2048),
                  RoutingConfig(apart_weight=1.0), link_bytes=1e6)  # fmt: skip
    for number in range(100):
        ask(where, 0.25 * number, words(number, 200), 300)
        if number % 4 == 0 and number > 20:
            ask(where, 0.25 * number, words(f"long {number}", 8000), 20)
    where.run(20.0)
    where.start("shard2")
    where.at(21.0, lambda: [where.send(request) for request in where.kill("shard0")] and None)
    where.run()
    trips = list(where.trips.values())
    assert all(trip.finished is not None for trip in trips)
    apart = [trip for trip in trips if trip.choice.prefill and trip.shard != "shard0"]
    assert len(apart) > 5
    assert sum(trip.cached >= len(trip.request.prompt_token_ids) - 16 for trip in apart) > len(apart) / 2
    for shard in where.shards.values():
        shard.engine.check_integrity()
        assert shard.engine.pool.num_owned == 0
    assert not where._prompts
