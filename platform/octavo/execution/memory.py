"""How much of a GPU's memory is left for the KV cache, measured; and the sentence for when it is too little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from octavo.config import EngineConfig
from octavo.errors import ModelError
from octavo.layer_groups import ONE_GROUP, LayerGroups
from octavo.request import MAX_LOGPROBS
from octavo.step import SamplingRows, StepBatch

_SMALLER = {"int8": 0.55, "int4": 0.32}  # of 16-bit weights, the embeddings among them at 16 bits


class Memory(Protocol):
    """What can be read of a device's memory, in bytes."""

    def total(self) -> int: ...

    def free(self) -> int:
        """What no process holds."""
        ...

    def allocated(self) -> int:
        """By this process's tensors."""
        ...

    def peak(self) -> int:
        """The most that was allocated since `reset`."""
        ...

    def reset(self) -> None:
        """Give back what no tensor holds, and forget the peak."""
        ...


class CudaMemory:
    """Of the current CUDA device."""

    def total(self) -> int:
        return torch.cuda.mem_get_info()[1]

    def free(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def allocated(self) -> int:
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True, slots=True)
class Use:
    """What takes a device's memory, in bytes.

    Attributes:
        step: the most that a step takes beside weights and cache.
        other: other processes, the driver, libraries.
    """

    total: int
    weights: int
    step: int
    other: int

    def room(self, utilization: float) -> int:
        """What is left for a KV cache of the share of the memory that may be used; negative when that is too little."""
        return int(self.total * utilization) - self.weights - self.step - self.other


def measure(memory: Memory, step: Callable[[], object]) -> Use:
    """Run the largest step once, with the weights in place and next to no KV cache."""
    memory.reset()
    weights = memory.allocated()
    step()
    peak = memory.peak() - weights
    memory.reset()
    return Use(memory.total(), weights, peak, memory.total() - memory.free() - memory.allocated())


def kv_cache_bytes(use: Use, config: EngineConfig, block: int, groups: LayerGroups = ONE_GROUP) -> int:
    """Bytes for the KV cache.

    Args:
        block: bytes of one KV block.
        groups: of layers, which share the blocks.

    Raises:
        ModelError: not even one sequence of `max_model_len` (a block, when that is not given) fits.
    """
    room = use.room(config.gpu_memory_utilization)
    needed = block * groups.held(config.max_model_len or 1, config.block_size)
    if room >= needed:
        return room
    allowed = int(use.total * config.gpu_memory_utilization)
    remedies = list(_remedies(use, config, block, groups, needed, allowed)) or ["use a GPU with more memory"]
    raise ModelError(
        f"the model does not fit: its weights take {_gib(use.weights)}, a step of {config.max_num_batched_tokens} "
        f"tokens {_gib(use.step)}, a KV cache of {config.max_model_len or config.block_size} tokens {_gib(needed)} and "
        f"what else is on the GPU {_gib(use.other)}: {_gib(allowed - room + needed)} in all, but "
        f"gpu_memory_utilization {config.gpu_memory_utilization:g} of {_gib(use.total)} is {_gib(allowed)}. "
        f"What would help: {'; or '.join(remedies)}"
    )


def largest_batch(config: EngineConfig, num_positions: int, groups: int = 1) -> StepBatch:
    """A step with as many tokens and as many rows to draw as there can be, with all that a row can ask for.

    Every stream gets its token however small the budget is, and prompts a block beside them. All lies in block 0.

    Args:
        num_positions: tokens of a sequence at most.
        groups: of layers.
    """
    rows, budget = config.max_num_seqs, config.max_num_batched_tokens
    tokens = max(budget, rows - 1 + min(config.block_size, budget))
    lens = np.minimum(num_positions, np.full(rows, tokens // rows) + (np.arange(rows) < tokens % rows)).astype(np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), np.cumsum(lens, dtype=np.int32)])
    width = -(-int(lens[0]) // config.block_size)
    return StepBatch(
        token_ids=np.zeros(starts[-1], np.int32),
        query_start=starts,
        context_lens=lens,
        block_tables=np.zeros((groups, rows, width) if groups > 1 else (rows, width), np.int32),
        block_copies=[],
        sampling=SamplingRows(
            token_index=starts[1:] - 1,
            temperature=np.ones(rows, np.float32),
            top_k=np.zeros(rows, np.int32),
            top_p=np.full(rows, 0.9, np.float32),
            min_p=np.zeros(rows, np.float32),
            seed=np.zeros(rows, np.uint64),
            position=lens.astype(np.int64),
            num_logprobs=np.full(rows, MAX_LOGPROBS, np.int32),
            logit_bias={0: (np.zeros(1, np.int64), np.zeros(1, np.float32))},
        ),
        prompt_logprobs=[(place, 0, MAX_LOGPROBS) for place in range(int(starts[-1]))],
    )


def _remedies(
    use: Use, config: EngineConfig, block: int, groups: LayerGroups, needed: int, allowed: int
) -> Iterator[str]:
    rest = use.step + use.other
    if (blocks := (allowed - use.weights - rest) // block) > 0:
        yield f"max_model_len of at most {groups.most_tokens(blocks, config.block_size)}"
    if config.quantization is None:
        for name, share in _SMALLER.items():
            if share * use.weights + rest + needed <= allowed:
                yield f"quantization {name!r} (weights of about {_gib(share * use.weights)})"
                break
    for size in (2, 4, 8):
        if size > config.tensor_parallel_size and (
            (use.weights + needed) * config.tensor_parallel_size / size + rest <= allowed
        ):
            yield f"tensor_parallel_size {size}"
            break
    for utilization in (0.95, 0.98):
        if utilization > config.gpu_memory_utilization and use.room(utilization) >= needed:
            yield f"gpu_memory_utilization {utilization}"
            break


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
