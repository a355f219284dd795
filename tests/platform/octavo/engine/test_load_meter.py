from __future__ import annotations

import random
from dataclasses import replace

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.load import Counters
from octavo.engine.load_meter import LoadMeter
from octavo.engine.stats import EngineStats
from octavo.load import ShardState

STATE = ShardState(
    decoding=0, context=0, prefilling=0, queued=0, backlog_tokens=0, backlog_attended=0, chunk=1024, max_num_seqs=32,
    blocks=100, blocks_free=100, block_size=16, mean_output=0.0, cost=Cost(0.01, 1e-4, 5e-4, 0.0, 0.0),
)  # fmt: skip
NOTHING = EngineStats(
    state=STATE, counters=Counters(), blocks_cached=0, filled_slots=0, generation_tokens=0, steps=0
)  # fmt: skip


def test_an_idle_shard() -> None:
    load = LoadMeter(EngineConfig(max_num_seqs=32)).measure(NOTHING, 5.0)
    assert (load.sequences, load.arrivals, load.seconds_arriving, load.seconds_waiting, load.kv_use) == (0, 0, 0, 0, 0)
    assert load.capacity == 32


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
        counters = Counters(
            arrived=arrived,
            finished=sum(end <= now for end in ends),
            finished_seconds=3.0 * sum(end <= now for end in ends),
            prompt_tokens=200 * arrived,
            cached_tokens=50 * arrived,
        )
        stats = replace(NOTHING, counters=counters, state=replace(STATE, decoding=sum(end > now for end in ends)))
        if tick % 10 == 0:
            load = meter.measure(stats, now)
    assert load.seconds_each == pytest.approx(3.0)
    assert load.arrivals == pytest.approx(5.0, abs=3.0)
    assert load.seconds_arriving == pytest.approx(150 * 1e-4 * load.arrivals, rel=0.01)


def test_a_burst_shows_within_a_second() -> None:
    meter = LoadMeter(EngineConfig())
    meter.measure(NOTHING, 0.0)
    meter.measure(replace(NOTHING, counters=Counters(arrived=2)), 1.0)
    load = meter.measure(replace(NOTHING, counters=Counters(arrived=42)), 2.0)
    assert load.arrivals > 10


def test_what_waits_and_what_is_held() -> None:
    state = replace(STATE, decoding=3, prefilling=1, queued=6, backlog_tokens=2048, blocks_free=25)
    stats = replace(NOTHING, state=state, filled_slots=400)
    load = LoadMeter(EngineConfig(target_itl=0.02)).measure(stats, 0.0)
    assert load.sequences == 10
    assert load.kv_use == pytest.approx(0.75)
    assert load.capacity == pytest.approx((0.02 - 0.01) / 6e-4)
    assert load.seconds_waiting == state.backlog_seconds == pytest.approx(2 * (0.01 + 3 * 6e-4) + 7 * 5e-4 + 0.2048)
    assert load.first_token == state.start_seconds()  # nothing has ended yet, so nobody knows how long places are held
