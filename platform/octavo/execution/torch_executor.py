"""The torch executor: a step on any device, through the decoder and the ops of `octavo_kernels`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.execution.beam_tensors import begin_candidates
from octavo.execution.capacity import CPU_KV_BYTES, groups_of, kv_room, num_positions, state_bytes
from octavo.execution.executor import States, Wait
from octavo.execution.graphs import Capture, DecodeGraphs, DecodeInputs, cuda_capture, fill_in, of_layers
from octavo.execution.kv_storage import KVStorage, TorchBlocks, bytes_per_block
from octavo.execution.memory import CudaMemory, kv_cache_bytes, largest_batch, measure
from octavo.execution.parallel import join_vocabulary
from octavo.execution.parts import TorchParts
from octavo.execution.plain_logprobs import prompt_logprobs
from octavo.execution.pooling import Head, pool, pooled_tokens
from octavo.execution.sampler import Drawn, begin_sample, logprob_rows
from octavo.execution.state_storage import StateStorage
from octavo.execution.transfer import fetch, to_device
from octavo.layer_groups import LayerGroups
from octavo.models.adapters import read_adapter
from octavo.models.decoder import Decoder, StepDecoder
from octavo.models.head import read_head
from octavo.models.load import load_model, torch_dtype
from octavo.models.parallel import Share, TPGroup
from octavo.models.source_spec import check_loadable, read_config
from octavo.models.step_context import StepAdapters, StepContext
from octavo.models.weights.adapted import DeviceAdapter, on_device, take_adapters
from octavo.request import Adapter
from octavo.source import Source
from octavo.step import Candidates, Float32, Int64, LogprobRow, StepBatch, StepResult
from octavo_kernels.dispatch import gpu_traits, use_gpu
from octavo_kernels.lora.segments import Segments, sort_rows
from octavo_kernels.paged_attention import PagedBatch


class TorchExecutor:
    """A decoder, or one rank's share of it, with its KV cache.

    A step copies blocks, runs the decoder and samples. On a GPU `launch` returns when all of that is queued there, and
    decode steps run as CUDA graphs once `use_graphs` was called.

    Args:
        decoder: decides the device.
        config: block size, KV type, and the most tokens drawn in a step.
        num_blocks: of its KV cache.
        states: room for those of recurrent layers, if there are any.
        head: what follows pooling, if anything does.

    Raises:
        ModelError: there is no memory for the cache.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        config: EngineConfig,
        num_blocks: int,
        head: Head | None = None,
        states: States | None = None,
    ) -> None:
        self.spec = decoder.share.whole
        self._head = head
        self.num_blocks, self.groups = num_blocks, groups_of(decoder.spec, config)
        self.block_size = config.block_size
        self._decoder = decoder
        self._device = str(decoder.device)
        self._kv = _allocate(decoder, config, num_blocks, self.groups)
        self.states, self._states = states, None
        if decoder.spec.recurrence is not None:
            count = 1 if states is None else states.count
            self._states = StateStorage(decoder.spec, count, decoder.dtype, self._device)
        self._description = _describe(decoder, config)
        is_ahead = self._device != "cpu" and decoder.group.size == 1 and config.async_scheduling is not False
        self.max_in_flight = 2 if is_ahead else 1
        self.batch_invariant = decoder.split_keys is not None
        self._drawn = torch.zeros(config.max_num_seqs, dtype=torch.int64, device=self._device)
        self._graphs: DecodeGraphs | None = None
        self._adapters: dict[str, DeviceAdapter] = {}
        self._ended = 0.0  # when the last result was there

    @property
    def local(self) -> Self:
        """As in `Executor`."""
        return self

    @property
    def kv(self) -> TorchBlocks:
        """As in `Executor`."""
        name = "cpu" if self._device == "cpu" else torch.cuda.get_device_name(self._device)
        return TorchBlocks(f"torch {torch.__version__} {name} {self._decoder.dtype} {self.block_size}", self._kv)

    @property
    def parts(self) -> TorchParts:
        """As in `LocalExecutor`."""
        return TorchParts(_own(self._decoder))

    def __str__(self) -> str:
        return self._description

    def use_graphs(self, max_model_len: int, capture: Capture) -> None:
        """Run decode steps as CUDA graphs from now on."""
        width = -(-max_model_len // self.block_size)
        split_keys = self._decoder.split_keys
        inputs = DecodeInputs(self._drawn, self._kv, width, self.block_size, split_keys, self.groups)
        self._graphs = DecodeGraphs(self._decoder.forward, inputs, capture)

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`."""
        decoder = _own(self._decoder)
        if decoder.split_keys is not None and not use_gpu(decoder.weights.embedding):
            raise ConfigError("without Triton adapters are not computed batch-invariantly: leave batch_invariant off")
        found = read_adapter(Path(adapter.path), decoder.share, adapter.digest)
        loaded = self._adapters[adapter.digest] = on_device(found, decoder.spec, decoder.device, decoder.dtype)
        take_adapters(decoder.weights, decoder.spec)
        return loaded.nbytes

    def drop_adapter(self, digest: str) -> None:
        """As in `Executor`."""
        self._adapters.pop(digest, None)

    def check_health(self) -> None:
        """Nothing here can break by itself."""

    def close(self) -> None:
        """Drop the model, its KV cache, and the graphs, which hold both."""
        self._graphs = None
        del self._decoder, self._kv, self._states

    @torch.inference_mode()
    def launch(self, batch: StepBatch) -> Wait:
        """As in `Executor`."""
        if self._device != "cpu":
            torch.cuda.set_device(self._device)  # of this thread, which may not be the one that loaded the model
        begun = time.perf_counter()
        hidden = self._forward(batch)
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, logits_row = np.unique(batch.sampling.token_index, return_inverse=True)
        logits = self._logits(self._take(hidden, places))
        prompt = prompt_logprobs(
            batch.prompt_logprobs,
            lambda rows: self._logits(self._take(hidden, np.array(rows))),
            logprob_rows,
        )
        drawn = self._draw(logits, logits_row, batch) if logits is not None and len(logits_row) else self._end()
        pooled = self._pool(hidden, batch) if batch.pooled else dict[int, Float32]
        found: Callable[[], dict[int, Candidates]] = dict
        if batch.sampling.beams and logits is not None:
            found = begin_candidates(logits, logits_row, batch.sampling)

        def wait() -> StepResult:
            tokens, logprobs = drawn()
            vectors = pooled()
            begin, self._ended = max(begun, self._ended), time.perf_counter()
            return StepResult(tokens, logprobs, prompt, self._ended - begin, vectors, found())

        return wait

    @torch.inference_mode()
    def logits(self, batch: StepBatch) -> Tensor:
        """As in `LocalExecutor`."""
        return self._decoder.logits(self._forward(batch))

    def _logits(self, hidden: Tensor) -> Tensor | None:
        """Of the whole vocabulary; None on a rank that does not sample."""
        decoder = self._decoder
        return join_vocabulary(decoder.logits(hidden), decoder.share, decoder.group)

    def _pool(self, hidden: Tensor, batch: StepBatch) -> Callable[[], dict[int, Float32]]:
        """Begin to copy the states that vectors are made of; what is returned waits for them."""
        states = fetch(self._take(hidden, pooled_tokens(batch)).float())
        return lambda: pool(batch, states()[0].astype(np.float32, copy=False), self._head)

    def _draw(self, logits: Tensor, logits_row: np.ndarray, batch: StepBatch) -> Drawn:
        unlisted = None
        if batch.sources is not None and batch.sampling.penalties:
            sources = to_device(batch.sources[batch.sampling.token_index], self._device)
            unlisted = torch.where(sources >= 0, self._drawn[sources.clamp(min=0)], -1)
        tokens, wait = begin_sample(self._take(logits, logits_row), batch.sampling, unlisted)
        self._drawn[: len(tokens)].copy_(tokens)
        return wait

    def _end(self) -> Drawn:
        """Waits for a step that draws nothing: its end is what its duration is measured by."""
        wait = fetch(self._drawn[:1])

        def nothing() -> tuple[Int64, dict[int, LogprobRow]]:
            wait()
            return np.zeros(0, np.int64), {}

        return nothing

    def _take(self, rows: Tensor, places: np.ndarray) -> Tensor:
        """rows[places], which are often all of them."""
        if len(places) == len(rows) and (places == np.arange(len(rows))).all():
            return rows
        return rows[to_device(places, self._device)]

    def _forward(self, batch: StepBatch) -> Tensor:
        self._kv.copy(batch.block_copies)
        with_graph = self._graphs is not None and batch.adapters is None
        hidden = self._graphs.run(batch) if self._graphs is not None and with_graph else None
        if hidden is not None:
            return hidden
        tokens = to_device(batch.token_ids, self._device)
        if batch.sources is not None:
            tokens = fill_in(tokens, to_device(batch.sources, self._device), self._drawn)
        return self._decoder.forward(tokens, self._context(batch))

    def _context(self, batch: StepBatch) -> StepContext:
        tables = batch.block_tables if self.groups.count > 1 else batch.block_tables[None]
        arrays = batch.query_start, batch.context_lens, tables[0], self.block_size
        layout = PagedBatch.build(*arrays, self._device, self._decoder.split_keys)
        layouts = [layout, *map(layout.with_tables, tables[1:])]
        adapted = self._adapted(batch, batch.adapters) if batch.adapters else None
        states = None if self._states is None else self._states.step(batch.states, batch.num_seqs)
        return StepContext(layout, self._kv.layers, adapted, states, of_layers(layouts, self.groups))

    def _adapted(self, batch: StepBatch, named: list[str]) -> StepAdapters:
        """The adapters of a step, and which tokens have them."""
        places = {digest: i for i, digest in enumerate(dict.fromkeys(filter(None, named)))}
        of_tokens = np.repeat([places.get(digest, -1) for digest in named], np.diff(batch.query_start))
        segments = Segments(*(to_device(array, self._device) for array in sort_rows(of_tokens)))
        adapters = [self._adapters[digest] for digest in places]
        words = torch.stack([adapter.words for adapter in adapters])
        return StepAdapters(segments, [adapter.changes for adapter in adapters], words)


def _own(decoder: StepDecoder) -> Decoder:
    """A decoder of ours.

    Raises:
        ConfigError: it is transformers'.
    """
    if not isinstance(decoder, Decoder):
        raise ConfigError("runner 'transformers' has no adapters, and its models are not taken apart")
    return decoder


def _kv_dtype(decoder: StepDecoder, config: EngineConfig) -> torch.dtype:
    return {"int8": torch.int8, "fp8": torch.float8_e4m3fn}.get(config.kv_cache_dtype, decoder.dtype)


def _allocate(decoder: StepDecoder, config: EngineConfig, num_blocks: int, groups: LayerGroups) -> KVStorage:
    try:
        dtype = _kv_dtype(decoder, config)
        return KVStorage(decoder.spec, num_blocks, config.block_size, dtype, str(decoder.device), groups)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"no memory for a KV cache of {num_blocks} blocks ({error}): lower kv_cache_bytes") from None


def _describe(decoder: StepDecoder, config: EngineConfig) -> str:
    weights = f", weights in {config.quantization}" if config.quantization else ""
    weights += f", keys and values in {config.kv_cache_dtype}" if config.kv_cache_dtype != "auto" else ""
    code = "" if isinstance(decoder, Decoder) else ", transformers' own code"
    return f"{decoder.spec.family} in {str(decoder.dtype).removeprefix('torch.')} on {decoder.device}{weights}{code}"


# ---- loading --------------------------------------------------------------------------------------------------------


def load_torch(
    source: Source, config: EngineConfig, device: str, share: Share, group: TPGroup, *, progress: bool
) -> TorchExecutor:
    """Load any model that Octavo knows.

    Args:
        device: "cpu" or "cuda:N".

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    _check(source, config, device, group)
    decoder: StepDecoder
    if source.runner == "transformers":
        decoder = _load_foreign(source, config, device)
    else:
        decoder = _load_decoder(source, config, device, share, group, progress)
        if config.batch_invariant:
            decoder.keep_one_order()
    head = read_head(source, share.whole, dummy=config.load_format == "dummy")
    num_blocks, states = _room(decoder, config)
    executor = TorchExecutor(decoder, config, num_blocks, head, states)
    eager = config.enforce_eager or states is not None  # graphs hold no states
    if device != "cpu" and group.size == 1 and not eager and isinstance(decoder, Decoder):
        most = executor.groups.most_tokens(executor.num_blocks, config.block_size)
        executor.use_graphs(min(config.max_model_len or share.whole.max_position_embeddings, most), cuda_capture())
    return executor


def _check(source: Source, config: EngineConfig, device: str, group: TPGroup) -> None:
    """Raise ConfigError for what the torch executor does not do on `device`."""
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
    if source.runner == "transformers" and (config.batch_invariant or config.load_format == "dummy"):
        raise ConfigError("runner 'transformers' has no batch_invariant and no load_format 'dummy': leave them out")
    if config.batch_invariant and (device == "cpu" or group.size > 1):
        where = "the torch runner on a CPU" if device == "cpu" else "several ranks"
        raise ConfigError(f"batch_invariant is not for {where}, on which {source.name} runs: leave it off")


def _load_foreign(source: Source, config: EngineConfig, device: str) -> StepDecoder:
    from octavo.models.foreign import load_foreign

    spec, positions = check_loadable(source, config.quantization, config.max_model_len)
    return load_foreign(source, spec, torch_dtype(config.dtype, device, read_config(source)), device, positions)


def _load_decoder(
    source: Source, config: EngineConfig, device: str, share: Share, group: TPGroup, progress: bool
) -> Decoder:
    room = CPU_KV_BYTES if device == "cpu" else CudaMemory().total()
    groups = groups_of(share.spec, config)
    least_block = bytes_per_block(share.spec, config.block_size, torch.int8, groups.depth)  # weights show the type
    try:
        return load_model(
            source,
            dtype=config.dtype,
            device=device,
            quantization=config.quantization,
            max_model_len=num_positions(share.spec, config, room, least_block, groups),
            load_format=config.load_format,
            progress=progress,
            share=share,
            group=group,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the weights of {source.name} do not fit into the GPU: {error}. What would help: quantization 'int8' or "
            "'int4', a larger tensor_parallel_size, or less beside it on the GPU"
        ) from None


def _room(decoder: StepDecoder, config: EngineConfig) -> tuple[int, States | None]:
    """KV blocks and states that fit: on a GPU, beside the weights and the largest step."""
    groups = groups_of(decoder.spec, config)
    block = bytes_per_block(decoder.spec, config.block_size, _kv_dtype(decoder, config), groups.depth)
    if decoder.device.type != "cpu" and config.kv_cache_bytes is None:
        use = measure(CudaMemory(), lambda: run_largest_step(decoder, config))
        config = dataclasses.replace(config, kv_cache_bytes=kv_cache_bytes(use, config, block, groups))
    return kv_room(config, block, state_bytes(decoder.spec, decoder.dtype.itemsize), decoder.group)


def run_largest_step(decoder: StepDecoder, config: EngineConfig) -> None:
    """Run a step with as many tokens and as many rows to draw, nucleus and all, as there can be.

    Raises:
        ModelError: memory does not suffice for that.
    """
    executor = TorchExecutor(decoder, config, 1)
    try:
        executor.launch(largest_batch(config, decoder.num_positions, executor.groups.count))()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"a step of {config.max_num_batched_tokens} tokens and {config.max_num_seqs} sequences does not fit beside "
            f"the weights: {error}. Lower max_num_batched_tokens or max_num_seqs, or quantise the weights"
        ) from None
