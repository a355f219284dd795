"""One model over several ranks says what one rank says: as threads through torch, as processes in native code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, BeamSearch, SamplingParams
from octavo.config import EngineConfig
from octavo.constraint import StructuredOutputs
from octavo.engine.batch import smallest_batch
from octavo.errors import ConfigError, EngineDead, ModelError
from octavo.execution import local, ranks
from octavo.execution.executor import LocalExecutor
from octavo.execution.local import load_local
from octavo.execution.native_executor import why_not_native
from octavo.execution.ranks import Invitation, ParallelExecutor, load_parallel, serve_rank
from octavo.execution.torch_executor import TorchExecutor
from octavo.models.parallel import Share
from octavo.source import Source, resolve_source
from octavo_kernels.native import library

PROMPTS = [list(range(3, 40)), [7], list(range(200, 250)), [5, 4, 3]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)


class RankThreads:
    """Ranks as threads of this process: with torch's kernels only, for the native ones run once per process."""

    def __init__(self, invitations: list[Invitation], device: str) -> None:
        self.failed: str | None = None
        self.threads = [threading.Thread(target=self._serve, args=(invitation,)) for invitation in invitations]
        for thread in self.threads:
            thread.start()

    def _serve(self, invitation: Invitation) -> None:
        try:
            serve_rank(invitation)
        except Exception as error:
            self.failed = f"rank {invitation.rank} has ended: {error!r}"

    def ended(self) -> str | None:
        return self.failed

    def stop(self) -> None:
        for thread in self.threads:
            thread.join(60)


@pytest.fixture
def as_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ranks, "RankProcesses", RankThreads)
    with library.use(None):
        yield


def generate(folder: Path | str, size: int, params: SamplingParams = GREEDY, **options: Any) -> list[Any]:
    options = {"kv_cache_bytes": 2**22, "max_model_len": 256, "threads": 1, "progress": False} | options
    llm = LLM(str(folder), tensor_parallel_size=size, **options)
    try:
        return llm.generate(PROMPTS, params, use_tqdm=False)
    finally:
        llm.close()


def tokens(outputs: list[Any]) -> list[list[list[int]]]:
    return [[line.token_ids for line in output.outputs] for output in outputs]


def test_every_family(as_threads: None, tiny_model: Callable[[str], Path], tiny_name: str) -> None:
    """Tied and untied embeddings, biases, q and k norms, windows, soft caps; heads that divide or do not."""
    folder = tiny_model(tiny_name)
    assert tokens(generate(folder, 2)) == tokens(generate(folder, 1))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("smollm2", 3),
        ("smollm2", 4),
        ("llama_biases", 4),
        ("gemma3", 3),
        ("mpt", 3),
        ("qwen3_moe_dense", 2),
        ("latent", 2),
        ("latent", 4),
    ],
)
def test_more_ranks(as_threads: None, tiny_model: Callable[[str], Path], name: str, size: int) -> None:
    folder = tiny_model(name)
    assert tokens(generate(folder, size)) == tokens(generate(folder, 1))


def test_sampling_and_log_probabilities(as_threads: None, tiny_model: Callable[[str], Path]) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, n=3, max_tokens=12, logprobs=2, prompt_logprobs=2)
    one, two = (generate(tiny_model("qwen3"), size, params) for size in (1, 2))
    assert tokens(two) == tokens(one)
    assert tokens(generate(tiny_model("qwen3"), 2, params, async_scheduling=True)) == tokens(one)
    for mine, theirs in zip(two, one, strict=True):
        for a, b in zip(mine.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True):
            assert [e.logprob for e in a.values()] == pytest.approx([b[t].logprob for t in a], abs=1e-4)


def test_what_a_grammar_leaves_to_choose(as_threads: None, tiny_model: Callable[[str], Path]) -> None:
    schema = {"type": "array", "items": {"enum": ["one", "two", "three"]}, "minItems": 2, "maxItems": 4}
    params = SamplingParams(
        temperature=1.2, seed=3, n=2, max_tokens=48, structured_outputs=StructuredOutputs(json=schema)
    )
    one, two = (generate(tiny_model("qwen3"), size, params) for size in (1, 2))
    assert tokens(two) == tokens(one)
    assert len({line.text for output in one for line in output.outputs}) > 1


def test_beams(as_threads: None, tiny_model: Callable[[str], Path]) -> None:
    params = SamplingParams(beams=BeamSearch(3, early_stopping="never"), n=3, max_tokens=8, repetition_penalty=1.2)
    one, two = (generate(tiny_model("mistral"), size, params) for size in (1, 2))
    assert tokens(two) == tokens(one)
    assert tokens(generate(tiny_model("mistral"), 2, params, async_scheduling=True)) == tokens(one)
    for mine, theirs in zip(two, one, strict=True):
        sums = [line.cumulative_logprob for line in theirs.outputs]
        assert [line.cumulative_logprob for line in mine.outputs] == pytest.approx(sums, abs=1e-4)


def test_too_many_ranks(as_threads: None, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="2 key-value heads with 2 query heads each: at most 4 ranks"):
        LLM(str(tiny_model("llama3")), tensor_parallel_size=5, progress=False)


def test_what_a_rank_fails_with_is_raised(
    as_threads: None, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(*args: Any, **options: Any) -> LocalExecutor:
        if options["group"].rank == 1:
            raise ModelError("no room on this rank")
        return load_local(*args, **options)

    monkeypatch.setattr(ranks, "load_local", picky)
    with pytest.raises(ModelError, match="no room on this rank"):
        LLM(str(tiny_model("llama3")), tensor_parallel_size=2, progress=False)


def test_steps_in_which_nothing_is_sampled(as_threads: None, tiny_model: Callable[[str], Path]) -> None:
    """All ranks compute the same sums and gather the same logits in them: none."""
    folder, none = tiny_model("smollm2"), SamplingParams(max_tokens=0)
    assert tokens(generate(folder, 2, none)) == [[[]]] * len(PROMPTS)
    assert tokens(generate(folder, 2, max_num_batched_tokens=16)) == tokens(generate(folder, 1))


def test_where_one_rank_cannot_run_natively_none_does(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], Path]
) -> None:
    """The native decoder and torch's sum over ranks in different places: each would wait for the other's sums."""

    def picky(source: Source, config: EngineConfig, share: Share) -> str | None:
        return "it is rank 1" if share.rank == 1 else why_not_native(source, config, share)

    monkeypatch.setattr(ranks, "RankProcesses", RankThreads)
    monkeypatch.setattr(local, "why_not_native", picky)
    source = resolve_source(str(tiny_model("smollm2")))
    executor = load_parallel(source, EngineConfig(tensor_parallel_size=2, kv_cache_bytes=2**20))
    try:
        assert isinstance(executor._own, TorchExecutor)
        assert executor.launch(smallest_batch(0))().seconds > 0
    finally:
        executor.close()


@pytest.fixture
def processes(tiny_model: Callable[[str], Path]) -> LLM:
    """A model on two processes, which leave when this one does or when the test closes it."""
    return LLM(
        str(tiny_model("smollm2")), tensor_parallel_size=2, kv_cache_bytes=2**22, max_model_len=256, progress=False
    )


def pids(llm: LLM) -> list[int]:
    executor = llm.engine.executor
    assert isinstance(executor, ParallelExecutor)
    processes = executor.others.processes
    assert isinstance(processes, ranks.RankProcesses)
    return [process.pid for process in processes._processes]


@pytest.mark.slow
def test_native_ranks(processes: LLM, tiny_model: Callable[[str], Path]) -> None:
    said = processes.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert tokens(said) == tokens(generate(tiny_model("smollm2"), 1))
    (child,) = pids(processes)
    processes.close()
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.slow
def test_a_rank_that_dies_or_hangs_is_noticed(processes: LLM) -> None:
    executor = processes.engine.executor
    executor.check_health()
    (child,) = pids(processes)
    os.kill(child, signal.SIGSTOP)
    wait_for_death(executor, "no sign of life")
    os.kill(child, signal.SIGKILL)
    wait_for_death(executor, "rank 1")
    with pytest.raises(EngineDead):
        processes.generate(PROMPTS, GREEDY, use_tqdm=False)
    processes.close()


def wait_for_death(executor: Any, sign: str) -> None:
    def look() -> None:
        for _ in range(300):
            time.sleep(0.2)
            executor.check_health()

    with pytest.raises(EngineDead, match=sign):
        look()


AT_EXIT = """
import atexit, time
from contextlib import suppress
from pathlib import Path

def name(thread):
    with suppress(OSError):  # it has ended
        return thread.read_text().strip()

def wait(there):
    while ("pt_gloo_runloop" in map(name, Path("/proc/self/task").glob("*/comm"))) != there:
        time.sleep(0.01)

atexit.register(wait, False)  # called last
from torch.distributed import HashStore
from octavo.execution.parallel import DistributedGroup
group = DistributedGroup(HashStore(), 0, 1, "cpu")
wait(True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have no names to look at")
def test_threads_that_hold_tensors_end_before_the_interpreter() -> None:
    subprocess.run([sys.executable, "-c", AT_EXIT], check=True, timeout=120)
