"""Where a step runs: the `Executor` protocol, and the one that runs in this process.

Importing torch takes 1.2 s and 150 MB; a packed model on a CPU needs none of it, so it is imported where it is needed.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tqdm import tqdm

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.execution.native_runner import NativeRunner
from octavo.execution.pipeline import Pipeline, Worker
from octavo.models.packed import load_packed, unpackable_formats
from octavo.models.parallel import Share, TPGroup
from octavo.models.source_spec import cut_through_blocks, read_share, why_not_packed
from octavo.models.spec import ModelSpec
from octavo.source import Source
from octavo.step import StepBatch, StepResult
from octavo_kernels.checksum import read_bandwidth
from octavo_kernels.decoder import CELL, NativeDecoder, PackedKV, PackedModel, Ranks, Type, block_bytes
from octavo_kernels.native.cores import available_cores
from octavo_kernels.native.library import Library, library

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from octavo.execution.parts import Parts
    from octavo.execution.runner import Join, Runner
    from octavo.models.decoder import Decoder

logger = logging.getLogger(__name__)

_CPU_KV_BYTES = 2**30
_GPU_FILES = "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"
"""On Linux a GPU's driver shows one of these: NVIDIA's, AMD's, or that of Windows below it."""


class Shape(Protocol):
    """What the engine asks of a model's shape (a `ModelSpec` says more)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_position_embeddings(self) -> int: ...


class Executor(Protocol):
    """Runs steps; knows nothing of requests.

    Attributes:
        num_blocks: KV blocks it has room for.
        pipeline: begins steps before the one before has ended; None where they are run one at a time.
    """

    num_blocks: int
    pipeline: Pipeline | None

    @property
    def spec(self) -> Shape: ...

    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step and return what it sampled."""
        ...

    def check_health(self) -> None:
        """Raise EngineDead when what runs the steps is broken; may be called from any thread."""
        ...

    def close(self) -> None:
        """Give up memory and helpers."""
        ...


class LocalExecutor:
    """A model, or one rank's share of it, in this process on one device.

    On a CPU it runs in native code where that covers it, else through torch.

    Attributes:
        spec: of the whole model.
        block_size: tokens per KV block.
    """

    def __init__(
        self, source: Source, config: EngineConfig, *, progress: bool = False, group: TPGroup | None = None
    ) -> None:
        self._group = group or TPGroup()
        self._share = read_share(source, self._group)
        self.spec = self._share.whole
        self.block_size = config.block_size
        self.pipeline: Pipeline | None = None
        device = _device(config.device)
        threads = config.threads or available_cores()
        if device == "cpu":
            _limit_torch(threads)
        native = library() if device == "cpu" else None
        reason = "there is no native library" if native is None else _why_not_native(source, config, self._share)
        if device == "cpu" and reason:
            logger.warning("%s runs on the slower torch runner: %s", source.name, reason)
        if native is None or reason:
            self._load_torch(source, config, device, progress)
        else:
            native.set_threads(threads)
            self._load_native(native, source, config, progress)
        self._worker: Worker | None = None
        if config.async_scheduling and self.pipeline is None and self._group.size == 1:
            self.pipeline = self._worker = Worker(self.execute)
        logger.info("%s: %s, %d KV blocks", source.name, self, self.num_blocks)
        if progress:
            tqdm.write(f"Engine ready: {source.name}: {self}", file=sys.stderr)  # `octavo serve` shows it

    def _load_torch(self, source: Source, config: EngineConfig, device: str, progress: bool) -> None:
        import torch

        from octavo.execution.graphs import cuda_capture
        from octavo.execution.kv_storage import bytes_per_block
        from octavo.execution.memory import CudaMemory, kv_cache_bytes, measure
        from octavo.execution.parts import TorchParts
        from octavo.models.load import load_model

        _check_kv_dtype(config, source, device)
        if config.batch_invariant and (device == "cpu" or self._group.size > 1):
            where = "the torch runner on a CPU" if device == "cpu" else "several ranks"
            raise ConfigError(f"batch_invariant is not for {where}, on which {source.name} runs: leave it off")
        room = _CPU_KV_BYTES if device == "cpu" else CudaMemory().total()
        least_block = bytes_per_block(
            self._share.spec, config.block_size, torch.int8
        )  # the type shows with the weights
        try:
            decoder = load_model(
                source,
                dtype=config.dtype,
                device=device,
                quantization=config.quantization,
                max_model_len=_positions(self._share.spec, config, room, least_block),
                load_format=config.load_format,
                progress=progress,
                share=self._share,
                group=self._group,
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"the weights of {source.name} do not fit into the GPU: {error}. What would help: quantization "
                "'int8' or 'int4', a larger tensor_parallel_size, or less beside it on the GPU"
            ) from None
        if config.batch_invariant:
            decoder.keep_one_order()
        spec = decoder.spec
        kv_dtype = _torch_kv_dtype(config, decoder)
        block = bytes_per_block(spec, config.block_size, kv_dtype)
        on_gpu = device != "cpu"
        if on_gpu and config.kv_cache_bytes is None:
            use = measure(CudaMemory(), lambda: largest_step(decoder, config, device, self._join))
            config = dataclasses.replace(config, kv_cache_bytes=kv_cache_bytes(use, config, block))
        self.num_blocks = self._num_blocks(config, block)
        weights = f", weights in {config.quantization}" if config.quantization else ""
        weights += f", keys and values in {config.kv_cache_dtype}" if config.kv_cache_dtype != "auto" else ""
        self._description = f"{spec.family} in {str(decoder.dtype).removeprefix('torch.')} on {device}{weights}"
        self._parts: Callable[[], Parts] = lambda: TorchParts(decoder)
        runner = _torch_runner(decoder, self.num_blocks, config, device, self._join)
        self._runner: Runner | NativeRunner = runner
        if on_gpu and self._group.size == 1:
            self.pipeline = runner if config.async_scheduling is not False else None
            if not config.enforce_eager:
                longest = min(config.max_model_len or spec.max_position_embeddings, self.num_blocks * config.block_size)
                runner.use_graphs(longest, cuda_capture())

    def _load_native(self, native: Library, source: Source, config: EngineConfig, progress: bool) -> None:
        assert config.kv_cache_dtype != "fp8", "_why_not_native refuses it"
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if config.dtype == "bfloat16" else "float32"
        kv_dtype: Type = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
        spec = self._share.spec
        shape = config.block_size, spec.num_kv_heads, spec.head_dim, kv_dtype
        block = block_bytes(spec.num_layers, *shape)
        spec, model = load_packed(
            source,
            dtype=dtype,
            quantization=config.quantization,
            max_model_len=_positions(spec, config, _CPU_KV_BYTES, block),
            progress=progress,
            share=self._share,
        )
        self.num_blocks = self._num_blocks(config, block)
        self._description = _describe(native, spec, model, dtype, kv_dtype)
        self._parts = lambda: _native_parts(native, spec, model, dtype)
        try:
            kv = PackedKV(spec.num_layers, self.num_blocks, *shape)
        except (OSError, OverflowError) as error:
            size = self.num_blocks * block_bytes(spec.num_layers, *shape)
            raise ModelError(f"no memory for a KV cache of {size} bytes ({error}): lower kv_cache_bytes") from None
        ranks = Ranks(self._share.vocab.start, self._group.all_reduce) if self._group.size > 1 else None
        decoder = NativeDecoder(native, model, kv, exact=dtype == "float32", ranks=ranks)
        self._runner = NativeRunner(decoder, kv, self._join if ranks else None)

    @property
    def parts(self) -> Parts:
        """The model, or this rank's share of it, taken apart."""
        return self._parts()

    def _join(self, logits: Tensor) -> Tensor | None:
        from octavo.execution.parallel import join_vocabulary

        return join_vocabulary(logits, self._share, self._group)

    def _num_blocks(self, config: EngineConfig, block: int) -> int:
        """All ranks have a part of every block, so the one with the least room decides."""
        return self._group.smallest(_num_blocks(config, block))

    def __str__(self) -> str:
        return self._description

    def execute(self, batch: StepBatch) -> StepResult:
        """Run one step here and now."""
        return self._runner.run(batch)

    def logits(self, batch: StepBatch) -> Tensor:
        """Run one step that samples nothing: logits [T, V] float32 after every token."""
        return self._runner.logits(batch)

    def check_health(self) -> None:
        """Nothing here can break by itself."""

    def close(self) -> None:
        """Drop the model and its KV cache."""
        if self._worker is not None:
            self._worker.close()
        self.pipeline = None
        if not isinstance(self._runner, NativeRunner):
            self._runner.close()
        del self._runner, self._parts


def _positions(spec: ModelSpec, config: EngineConfig, room: int, block: int) -> int:
    """Positions that need a rotary table: no more than there can be keys for.

    For all positions of a model of a million tokens a table takes 0.5 GB, next to a KV cache of a few thousand.

    Args:
        room: bytes of the KV cache where the config gives none, or more.
        block: bytes of a KV block, or fewer.
    """
    wanted = config.max_model_len or spec.max_position_embeddings
    if wanted > spec.max_position_embeddings:
        return wanted  # whoever loads the model refuses it
    return min(wanted, max(1, (config.kv_cache_bytes or room) // block) * config.block_size)


def _native_parts(native: Library, spec: ModelSpec, model: PackedModel, dtype: Type) -> Parts:
    from octavo.execution.parts import NativeParts

    return NativeParts(native, spec, model, dtype)


def _limit_torch(threads: int) -> None:
    """Torch's threads, whether it is loaded already, later, or never."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    else:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _device(name: str) -> str:
    """With the number of the GPU: Triton and CUDA graphs use the one that is current in the thread that runs a step."""
    if name == "cpu" or (name == "auto" and _has_no_gpu()):
        return "cpu"
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r} but torch sees no CUDA device; use 'cpu' or 'auto'")
    if name in ("auto", "cuda"):
        name = f"cuda:{torch.cuda.current_device()}"
    if name != "cpu":
        torch.cuda.set_device(name)
    return name


def _has_no_gpu() -> bool:
    """Whether that is certain without asking torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return hidden or (sys.platform == "linux" and not any(Path(file).exists() for file in _GPU_FILES))


def _check_kv_dtype(config: EngineConfig, source: Source, device: str) -> None:
    """Raise ConfigError for keys and values that the torch runner does not hold on `device`."""
    import torch

    from octavo_kernels.dispatch import gpu_traits

    wanted = config.kv_cache_dtype
    if wanted in ("float32", "bfloat16"):
        raise ConfigError(
            f"kv_cache_dtype {wanted!r} needs the native CPU runner, and {source.name} runs on the torch runner: use "
            "'auto', the model's type, or 'int8'"
        )
    capability = gpu_traits(torch.device(device)).capability
    if wanted == "fp8" and capability < (8, 9):
        major, minor = capability
        raise ConfigError(
            f"kv_cache_dtype 'fp8' needs compute capability 8.9, this GPU has {major}.{minor}: use 'int8'"
        )


def _why_not_native(source: Source, config: EngineConfig, share: Share) -> str | None:
    """What the native runner does not cover, in words; None when it covers all."""
    if config.load_format == "dummy":
        return "load_format is dummy"
    if config.dtype == "float16":
        return "dtype is float16; use float32 or bfloat16"
    if config.kv_cache_dtype == "fp8":
        return "kv_cache_dtype is fp8; use int8"
    if config.block_size % CELL:
        return f"block_size is {config.block_size}; use a multiple of {CELL}"
    if formats := unpackable_formats(source):
        return f"it holds {', '.join(formats)} blocks"
    return cut_through_blocks(source, share) or why_not_packed(source, config.quantization, share.spec)


def _describe(native: Library, spec: ModelSpec, model: PackedModel, dtype: Type, kv_dtype: Type) -> str:
    """The family and what bounds its speed: instruction set, threads, bits, bytes of a step, and the bandwidth now."""
    rate = read_bandwidth([weight.data for weight in model.matrices])
    mode = "exact float32" if dtype == "float32" else "bfloat16, and 8-bit activations for quantised weights"
    keys = "" if kv_dtype == dtype else f"keys and values in {kv_dtype}, "
    return (
        f"{spec.family} on cpu ({native.level}, {native.threads} threads) in {mode}, {keys}"
        f"{model.bits_per_weight:.1f} bits per weight; a step reads {model.bytes_per_token / 1e6:.1f} MB, this machine "
        f"{rate / 1e9:.1f} GB/s: at most {rate / model.bytes_per_token:.0f} tokens/s for one stream"
    )


def _torch_kv_dtype(config: EngineConfig, decoder: Decoder) -> torch.dtype:
    import torch

    return {"int8": torch.int8, "fp8": torch.float8_e4m3fn}.get(config.kv_cache_dtype, decoder.dtype)


def _torch_runner(decoder: Decoder, num_blocks: int, config: EngineConfig, device: str, join: Join) -> Runner:
    import torch

    from octavo.execution.kv_storage import KVStorage
    from octavo.execution.runner import Runner

    try:
        kv = KVStorage(decoder.spec, num_blocks, config.block_size, _torch_kv_dtype(config, decoder), device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"no memory for a KV cache of {num_blocks} blocks ({error}): lower kv_cache_bytes") from None
    return Runner(decoder, kv, config.block_size, config.max_num_seqs, device, join)


def largest_step(decoder: Decoder, config: EngineConfig, device: str, join: Join) -> None:
    """Run a step with as many tokens and as many rows to draw, nucleus and all, as there can be.

    Raises:
        ModelError: memory does not suffice for that.
    """
    import torch

    from octavo.execution.memory import largest_batch

    runner = _torch_runner(decoder, 1, config, device, join)
    try:
        runner.run(largest_batch(config, decoder.num_positions))
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"a step of {config.max_num_batched_tokens} tokens and {config.max_num_seqs} sequences does not fit beside "
            f"the weights: {error}. Lower max_num_batched_tokens or max_num_seqs, or quantise the weights"
        ) from None


def _num_blocks(config: EngineConfig, block: int) -> int:
    """KV blocks of `block` bytes that fit."""
    wanted = _CPU_KV_BYTES if config.kv_cache_bytes is None else config.kv_cache_bytes
    if wanted < block:
        raise ModelError(f"the KV cache gets {wanted} bytes but one block of {config.block_size} tokens takes {block}")
    return wanted // block
