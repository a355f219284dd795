from __future__ import annotations

import random
from dataclasses import replace

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.load_meter import LoadMeter
from octavo.engine.stats import EngineStats

NOTHING = EngineStats(
    num_running=0, num_waiting=0, blocks_total=100, blocks_free=100, blocks_cached=0, filled_slots=0, owned_slots=0,
    sequences_arrived=0, sequences_finished=0, finished_seconds=0.0, prompt_tokens=0, cached_tokens=0,
    generation_tokens=0, preemptions=0, steps=0, seconds_of_work=0.0, cost=Cost(0.01, 1e-4, 5e-4, 0.0, 0.0),
)  # fmt: skip


def test_an_idle_shard() -> None:
    load = LoadMeter(EngineConfig(max_num_seqs=32)).measure(NOTHING, 5.0)
    assert (load.sequences, load.arrivals, load.arriving, load.waiting, load.kv_use) == (0, 0, 0, 0, 0)
    assert load.room == 32


def test_rates_and_times_of_a_queue() -> None:
    """Sequences come at 5 per second with 200 prompt tokens, 50 of them cached, and run 3 seconds each."""
    rng = random.Random(3)
    meter = LoadMeter(EngineConfig(max_num_seqs=32))
    ends: list[float] = []
    arrived = 0
    for tick in range(2400):
        now = tick / 20
        came = int(rng.random() < 5 / 20)
        arrived += came
        ends += [now + 3.0] * came
        stats = replace(
            NOTHING,
            num_running=sum(end > now for end in ends),
            sequences_arrived=arrived,
            sequences_finished=sum(end <= now for end in ends),
            finished_seconds=3.0 * sum(end <= now for end in ends),
            prompt_tokens=200 * arrived,
            cached_tokens=50 * arrived,
        )
        if tick % 10 == 0:
            load = meter.measure(stats, now)
    assert load.seconds_each == pytest.approx(3.0)
    assert load.arrivals == pytest.approx(5.0, abs=3.0)
    assert load.arriving == pytest.approx(150 * 1e-4 * load.arrivals, rel=0.01)


def test_a_burst_shows_within_a_second() -> None:
    meter = LoadMeter(EngineConfig())
    meter.measure(NOTHING, 0.0)
    meter.measure(replace(NOTHING, sequences_arrived=2), 1.0)
    load = meter.measure(replace(NOTHING, sequences_arrived=42), 2.0)
    assert load.arrivals > 10


def test_what_waits_and_what_is_held() -> None:
    stats = replace(NOTHING, num_running=4, num_waiting=6, blocks_free=25, seconds_of_work=1.5, filled_slots=400)
    load = LoadMeter(EngineConfig(max_num_seqs=32, target_itl=0.02)).measure(stats, 0.0)
    assert load.sequences == 10
    assert load.kv_use == pytest.approx(0.75)
    assert load.room == pytest.approx((0.02 - 0.01) / 6e-4)
    assert load.first_token == pytest.approx(1.5)  # nothing has ended yet, so nobody knows how long places are held
