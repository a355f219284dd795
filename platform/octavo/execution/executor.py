"""Where a step runs: the `Executor` protocol, and the one that runs in this process."""

from __future__ import annotations

import logging
import os
from typing import Protocol

import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.execution.kv_storage import KVStorage, bytes_per_block
from octavo.execution.runner import Runner
from octavo.models.load import load_model
from octavo.models.spec import ModelSpec
from octavo.source import Source
from octavo.step import StepBatch, StepResult

logger = logging.getLogger(__name__)

_CPU_KV_BYTES = 2**30


class Executor(Protocol):
    """Runs steps; knows nothing of requests.

    Attributes:
        spec: the model's shape.
        num_blocks: KV blocks it has room for.
    """

    spec: ModelSpec
    num_blocks: int

    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step and return what it sampled."""
        ...

    def close(self) -> None:
        """Give up memory and helpers."""
        ...


class LocalExecutor:
    """The model in this process, on one device."""

    def __init__(self, source: Source, config: EngineConfig, *, progress: bool = False) -> None:
        if config.tensor_parallel_size > 1:
            raise ConfigError("tensor_parallel_size above 1 needs an executor with several ranks; in one process use 1")
        device = _device(config.device)
        if device == "cpu":
            torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        decoder = load_model(
            source,
            dtype=config.dtype,
            device=device,
            quantization=config.quantization,
            max_model_len=config.max_model_len,
            progress=progress,
        )
        self.spec = decoder.spec
        self.num_blocks = _num_blocks(config, decoder.spec, decoder.dtype, device)
        self._description = f"{decoder.spec.family} in {str(decoder.dtype).removeprefix('torch.')} on {device}"
        kv = KVStorage(decoder.spec, self.num_blocks, config.block_size, decoder.dtype, device)
        self._runner = Runner(decoder, kv, config.block_size, device)
        logger.info("%s: %s, %d KV blocks", source.name, self, self.num_blocks)

    def __str__(self) -> str:
        return self._description

    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step here and now."""
        return self._runner.run(batch)

    def close(self) -> None:
        """Drop the model and its KV cache."""
        del self._runner


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r} but torch sees no CUDA device; use 'cpu' or 'auto'")
    return name


def _num_blocks(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype, device: str) -> int:
    """KV blocks that fit; called once the weights are in place."""
    block = bytes_per_block(spec, config.block_size, dtype)
    wanted = config.kv_cache_bytes
    if wanted is None:
        wanted = _free_gpu_bytes(config.gpu_memory_utilization) if device != "cpu" else _CPU_KV_BYTES
    if wanted < block:
        raise ModelError(f"the KV cache gets {wanted} bytes but one block of {config.block_size} tokens takes {block}")
    return wanted // block


def _free_gpu_bytes(utilization: float) -> int:
    free, total = torch.cuda.mem_get_info()
    return int(free - total * (1 - utilization))
