"""A recorded engine in simulated time."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.engine import Engine
from octavo.recording import find_recordings
from octavo.rehearsal.simulated import Profile, SimulatedExecutor
from octavo.request import Request, SamplingParams

MACHINE = Profile("test", Cost(6.4e-3, 30.3e-6, 10e-6, 1.06e-9, 48.9e-9), 1, 4_000, 2048, ())


@pytest.fixture
def recording(tmp_path) -> Path:
    """Of twelve requests, some of which begin alike, on a machine with few blocks."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    config = EngineConfig(max_num_batched_tokens=256, max_num_seqs=6, record=str(tmp_path / "shard"))
    executor = SimulatedExecutor(MACHINE, config, range(100), 100, clock=lambda: now, sleep=sleep)
    engine = Engine("test", executor, config, (), clock=lambda: now)
    for number in range(12):
        prompt = [*range(40)] * (1 + number % 4) + [number] * 30
        params = SamplingParams(max_tokens=20 + 5 * number, ignore_eos=True)
        engine.add(Request(request_id=f"r{number}", prompt_token_ids=prompt, params=params))
        for _ in range(5):
            engine.step()
    while engine.has_work:
        engine.step()
    engine.close()
    (file,) = find_recordings(tmp_path)
    return file
