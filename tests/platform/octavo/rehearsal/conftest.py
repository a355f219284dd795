"""Recorded engines in simulated time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.engine import Engine
from octavo.recording import find_recordings
from octavo.rehearsal.simulated import Profile, SimulatedExecutor
from octavo.request import Request, SamplingParams

MACHINE = Profile("test", Cost(6.4e-3, 30.3e-6, 10e-6, 1.06e-9, 48.9e-9), 1, 8_000, 2048, ())


class Clock:
    """Time that passes while somebody sleeps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def talks() -> list[tuple[float, Request]]:
    """When requests come, and these: turns of six talks, each of which repeats what was said, with gaps between."""
    drawn, at, found = random.Random(5), 0.0, []
    said: list[list[int]] = [[talk] * 40 for talk in range(6)]
    for number in range(60):
        at += drawn.expovariate(25.0)
        talk = drawn.randrange(6)
        said[talk] = (said[talk] + [drawn.randrange(90) for _ in range(drawn.randrange(5, 60))])[:800]
        params = SamplingParams(max_tokens=drawn.randrange(2, 60), ignore_eos=True)
        found.append((at, Request(request_id=f"r{number}", prompt_token_ids=list(said[talk]), params=params)))
    return found


@pytest.fixture
def record(tmp_path):
    """Records an engine that gets these requests, with other settings if need be; returns the file."""

    def run(**settings) -> Path:
        clock, coming = Clock(), talks()
        folder = tmp_path / f"shard{len(list(tmp_path.iterdir()))}"
        usual = {"max_num_batched_tokens": 256, "max_num_seqs": 8, "speculation": False, "kv_cache_bytes": 8_000}
        config = EngineConfig(**{**usual, **settings}, record=str(folder))
        executor = SimulatedExecutor(MACHINE, config, range(100), 100, clock=clock, sleep=clock.sleep)
        engine = Engine("test", executor, config, (), clock=clock)
        while coming or engine.has_work:
            while coming and (coming[0][0] <= clock.now or not engine.has_work):
                clock.now = max(clock.now, coming[0][0])
                engine.add(coming.pop(0)[1])
            engine.step()
        engine.close()
        (file,) = find_recordings(folder)
        return file

    return run


@pytest.fixture
def recording(record) -> Path:
    """Of one engine."""
    return record()
