from __future__ import annotations

import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import ModelError
from octavo.execution import torch_executor
from octavo.execution.local import load_local
from octavo.execution.memory import Use, kv_cache_bytes, largest_batch, measure
from octavo.execution.torch_executor import TorchExecutor, run_largest_step
from octavo.models.decoder import Decoder
from octavo.models.load import load_model
from octavo.source import resolve_source

GIB = 2**30


class FakeMemory:
    """16 GiB, of which the weights take 9, another process 1 and this one's driver half a one."""

    def __init__(self, step: int = 2 * GIB) -> None:
        self._step = step
        self._peak = 0

    def total(self) -> int:
        return 16 * GIB

    def free(self) -> int:
        return 16 * GIB - 10 * GIB - GIB // 2

    def allocated(self) -> int:
        return 9 * GIB

    def peak(self) -> int:
        return self._peak

    def reset(self) -> None:
        self._peak = self.allocated()

    def run(self) -> None:
        self._peak += self._step


def test_what_is_left_is_measured():
    memory = FakeMemory()
    use = measure(memory, memory.run)
    assert use == Use(total=16 * GIB, weights=9 * GIB, step=2 * GIB, other=3 * GIB // 2)
    assert kv_cache_bytes(use, EngineConfig(gpu_memory_utilization=1.0), block=2**20) == 3.5 * GIB
    assert kv_cache_bytes(use, EngineConfig(), block=2**20) == int(14.4 * GIB) - 12.5 * GIB


def refusal(use, block=2**20, **settings):
    with pytest.raises(ModelError) as caught:
        kv_cache_bytes(use, EngineConfig(**settings), block)
    return str(caught.value)


def test_what_does_not_fit_is_told_with_what_would_help():
    use = Use(total=16 * GIB, weights=9 * GIB, step=2 * GIB, other=3 * GIB // 2)
    said = refusal(use, max_model_len=65536)
    for part in ("weights take 9.0 GiB", "a step of 1024 tokens 2.0 GiB", "65536 tokens 4.0 GiB", "1.5 GiB: 16.5 GiB",
                 "0.9 of 16.0 GiB is 14.4 GiB", "max_model_len of at most 31120", "quantization 'int8'",
                 "tensor_parallel_size 2"):  # fmt: skip
        assert part in said, part
    assert "gpu_memory_utilization 0.95" not in said
    assert "or gpu_memory_utilization 0.95" in refusal(use, max_model_len=40000)
    assert "'int4'" in refusal(Use(24 * GIB, 60 * GIB, GIB, 0))
    hopeless = refusal(Use(8 * GIB, 600 * GIB, GIB, 0), quantization="int4")
    assert hopeless.endswith("What would help: use a GPU with more memory")


@pytest.mark.parametrize(
    ("settings", "rows", "tokens"),
    [
        ({"max_num_seqs": 5, "max_num_batched_tokens": 64}, 5, 64),
        ({"max_num_batched_tokens": 8}, 64, 63 + 8),  # 63 streams get their token, a prompt the whole budget
        ({"max_num_batched_tokens": 40}, 64, 63 + 16),
        ({"max_num_seqs": 1, "max_num_batched_tokens": 900}, 1, 512),
    ],
)
def test_the_largest_step_runs(tiny_model, settings, rows, tokens):
    config = EngineConfig(**settings)
    decoder = load_model(resolve_source(str(tiny_model("gemma2"))))
    executor = TorchExecutor(decoder, config, 1)
    batch = largest_batch(config, decoder.num_positions, executor.groups.count)
    assert (batch.num_tokens, len(batch.sampling.token_index)) == (tokens, rows)
    result = executor.launch(batch)()
    assert len(result.token_ids) == len(result.logprobs) == rows
    assert len(result.prompt_logprobs) == tokens


def test_weights_and_caches_that_do_not_fit_are_refused_with_a_sentence(tiny_model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 16.00 GiB")

    source, config = resolve_source(str(tiny_model("gemma2"))), EngineConfig(dtype="float16")  # not for the native one
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "forward", full)
        with pytest.raises(ModelError, match=r"a step of 1024 tokens and 64 sequences.*Lower max_num_batched_tokens"):
            run_largest_step(load_model(source), config)
    monkeypatch.setattr(torch_executor, "KVStorage", full)
    with pytest.raises(ModelError, match="lower kv_cache_bytes"):
        load_local(source, config)
    monkeypatch.setattr(torch_executor, "load_model", full)
    with pytest.raises(ModelError, match=r"allocate 16\.00 GiB.*quantization 'int8'"):
        load_local(source, config)
