"""The native executor: a whole step on the CPU in one call, weights in their own format.

`dtype` says whether K, V and attention's weights are float32 or rounded to bfloat16, `activations` what products do
with their input (`Precision`): float32 without rounding computes as if the weights were dequantised, like the torch
executor. Whatever they are, a sequence's logits have the same bits whatever else is in the step, however its prompt is
cut into chunks, and on any number of threads.

Torch is loaded only for ranks, and to take the model apart.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt

from octavo.config import EngineConfig
from octavo.errors import ModelError
from octavo.execution.beam_candidates import candidates
from octavo.execution.capacity import CPU_KV_BYTES, groups_of, kv_room, num_positions, state_bytes
from octavo.execution.executor import States, Wait, finished
from octavo.execution.kv_blocks import NativeBlocks
from octavo.execution.plain_logprobs import logprob_rows, prompt_logprobs, sampled_logprobs
from octavo.execution.pooling import Head, pool, pooled_tokens
from octavo.execution.treatment import apply_treatment
from octavo.layer_groups import LayerGroups
from octavo.models.adapters import read_adapter
from octavo.models.head import read_head
from octavo.models.packed import load_packed, unpackable_formats
from octavo.models.parallel import Share, TPGroup
from octavo.models.source_spec import cut_through_blocks, why_not_packed
from octavo.request import Adapter
from octavo.source import Source
from octavo.step import Candidates, Float32, GaveWay, Int64, LogprobRow, SamplingRows, StepBatch, StepResult
from octavo_kernels.checksum import read_bandwidth
from octavo_kernels.decoder import (
    CELL,
    NativeDecoder,
    PackedKV,
    PackedModel,
    PackedStates,
    Ranks,
    StepGaveWay,
    Type,
    block_bytes,
)
from octavo_kernels.linear.formats import Precision
from octavo_kernels.lora.packed import PackedAdapter
from octavo_kernels.native.library import Library
from octavo_kernels.sampling import sample

if TYPE_CHECKING:
    import torch

    from octavo.execution.parts import Parts


class NativeExecutor:
    """A packed model, or one rank's share of it, with its KV cache; steps run in `launch`.

    Args:
        native: the library that runs it.
        model: its weights.
        kv: its cache, all of whose blocks are free.
        dtype: that is computed in.
        precision: of products.
        share: what of the whole model it is.
        group: the ranks that have the other shares.
        groups: of its layers.
        head: what follows pooling, if anything does.
        states: room for those of recurrent layers, if there are any.
    """

    max_in_flight: int = 1
    batch_invariant: bool = True

    def __init__(
        self,
        native: Library,
        model: PackedModel,
        kv: PackedKV,
        share: Share,
        group: TPGroup,
        *,
        dtype: Literal["float32", "bfloat16"],
        precision: Precision,
        groups: LayerGroups,
        head: Head | None = None,
        states: States | None = None,
    ) -> None:
        self.spec = share.whole
        self.num_blocks, self.groups = kv.num_blocks, groups
        self.block_size = kv.block_size
        self._native, self._model, self._kv = native, model, kv
        self._share, self._group, self._head = share, group, head
        self._dtype, self._precision = dtype, precision
        ranks = Ranks(share.vocab.start, group.all_reduce) if group.size > 1 else None
        self.states = states
        kept = None if states is None else PackedStates(model, states.count)
        tables = groups.layers if groups.count > 1 else None
        self._decoder = NativeDecoder(native, model, kv, precision=precision, ranks=ranks, states=kept, groups=tables)
        self._adapters: dict[str, PackedAdapter] = {}
        self._description = self._describe()

    @property
    def local(self) -> Self:
        """As in `Executor`."""
        return self

    @property
    def kv(self) -> NativeBlocks:
        """As in `Executor`."""
        return NativeBlocks(f"native {self._native.digest()} {self._dtype} {self._precision.name}", self._kv)

    @property
    def parts(self) -> Parts:
        """As in `LocalExecutor`."""
        from octavo.execution.parts import NativeParts

        return NativeParts(self._native, self._share.spec, self._model, self._dtype, self._precision)

    def __str__(self) -> str:
        return self._description

    def launch(self, batch: StepBatch) -> Wait:
        """Run a step here and now."""
        begin = time.perf_counter()
        # The n sequences of one prompt are drawn from the same logits: compute those once.
        places, logits_row = np.unique(batch.sampling.token_index, return_inverse=True)
        kept = pooled_tokens(batch) if batch.pooled else None
        try:
            logits = self._joined(self._step(batch, places.astype(np.int64), kept))
        except StepGaveWay:
            return _gave_way
        pooled = {} if kept is None else pool(batch, self._decoder.states(kept), self._head)
        nothing = np.zeros(0, np.int64), dict[int, LogprobRow](), dict[int, Candidates]()
        tokens, logprobs, found = nothing if logits is None else _sample(logits, logits_row, batch.sampling)
        prompt = prompt_logprobs(batch.prompt_logprobs, self._logits, logprob_rows)
        return finished(StepResult(tokens, logprobs, prompt, time.perf_counter() - begin, pooled, found))

    def logits(self, batch: StepBatch) -> torch.Tensor:
        """As in `LocalExecutor`."""
        import torch

        return torch.from_numpy(self._step(batch, np.arange(batch.num_tokens))).clone()  # the next step writes there

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`."""
        found = read_adapter(Path(adapter.path), self._share, adapter.digest)
        layers: list[dict[str, tuple[Float32, Float32]]] = [{} for _ in range(self.spec.num_layers)]
        for (layer, part), low in found.items():
            layers[layer][part] = low.a, low.b
        packed = self._adapters[adapter.digest] = PackedAdapter(layers, self._model.adapter_kinds(self._precision))
        return packed.num_bytes

    def drop_adapter(self, digest: str) -> None:
        """As in `Executor`."""
        self._adapters.pop(digest, None)

    def check_health(self) -> None:
        """Nothing here can break by itself."""

    def close(self) -> None:
        """Drop the model and its KV cache."""
        del self._decoder, self._model, self._kv

    def _describe(self) -> str:
        """The family and what bounds its speed: instructions, threads, bits, bytes of a step, the bandwidth now."""
        native, model = self._native, self._model
        rates = read_bandwidth([weight.data for weight in model.matrices])
        slow, fast = (rate / model.bytes_per_token for rate in rates)
        mode = described(self._dtype, self._precision)
        keys = "" if self._kv.dtype == self._dtype else f"keys and values in {self._kv.dtype}, "
        return (
            f"{self.spec.family} on cpu ({native.level}, {native.threads} threads) in {mode}, {keys}"
            f"{model.bits_per_weight:.1f} bits per weight; a step reads {model.bytes_per_token / 1e6:.1f} MB, "
            f"this machine now {rates[0] / 1e9:.0f} to {rates[1] / 1e9:.0f} GB/s: one stream gets at most "
            f"{slow:.0f} to {fast:.0f} tokens/s"
        )

    def _step(self, batch: StepBatch, token_index: Int64, kept: Int64 | None = None) -> npt.NDArray[np.float32]:
        self._kv.copy(batch.block_copies)
        arrays = (batch.token_ids, batch.query_start, batch.context_lens, batch.block_tables)
        ids, starts, contexts, tables = (np.ascontiguousarray(x, np.int32) for x in arrays)
        whole = bool(batch.prompt_logprobs)
        named = batch.adapters
        adapters = None if named is None else [self._adapters[digest] if digest else None for digest in named]
        rows = batch.states
        states = None if rows is None else (rows.source, rows.saved, rows.states)
        gives_way = batch.gives_way if self._group.size == 1 else None  # other ranks would go on
        more = {"kept": kept, "whole": whole, "adapters": adapters, "states": states, "gives_way": gives_way}
        return self._decoder.step(ids, starts, contexts, tables, token_index, **more)  # type: ignore[arg-type]

    def _joined(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        if self._group.size == 1:
            return logits
        import torch

        from octavo.execution.parallel import join_vocabulary

        joined = join_vocabulary(torch.from_numpy(logits), self._share, self._group)
        return None if joined is None else joined.numpy()

    def _logits(self, rows: list[int]) -> Float32 | None:
        return self._joined(self._decoder.logits(np.array(rows, np.int64)))


def _gave_way() -> StepResult:
    raise GaveWay


def described(dtype: Literal["float32", "bfloat16"], precision: Precision) -> str:
    """How a native runner computes."""
    if precision is Precision.EXACT:
        return "exact float32" if dtype == "float32" else dtype
    bits = 8 if precision is Precision.FAST else 16
    return f"{dtype}, and {bits}-bit activations for quantised weights"


def precision_of(config: EngineConfig) -> Precision:
    """What the settings say of products."""
    usual = {"float32": "float32", "bfloat16": "int8"}.get(config.dtype, "int16")
    wanted = usual if config.activations == "auto" else config.activations
    return {"float32": Precision.EXACT, "int16": Precision.TWICE, "int8": Precision.FAST}[wanted]


def _sample(
    logits: npt.NDArray[np.float32], logits_row: npt.NDArray[np.int64], rows: SamplingRows
) -> tuple[Int64, dict[int, LogprobRow], dict[int, Candidates]]:
    """Tokens and log probabilities as of `octavo.execution.sampler.sample`, and what may follow beams.

    Row r is drawn from logits[logits_row[r]], which the next step overwrites anyway.
    """
    options = rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed, rows.position
    undo = apply_treatment(logits, logits_row, rows) if rows.are_treated else None
    tokens = sample(logits, logits_row, *options, rows.masks, rows.masked)
    tells = (rows.num_logprobs >= 0).any()
    if undo is not None and (tells or rows.beams):
        undo()
    found = candidates(logits, logits_row, tokens, rows) if rows.beams else {}
    return tokens, sampled_logprobs(logits, logits_row, tokens, rows) if tells else {}, found


# ---- loading --------------------------------------------------------------------------------------------------------


def why_not_native(source: Source, config: EngineConfig, share: Share) -> str | None:
    """What the native executor does not cover, in words; None when it covers all."""
    if source.runner == "transformers":
        return "runner is transformers"
    if (latent := share.whole.latent) is not None and (latent.size % CELL or latent.value % CELL):
        return f"heads have {latent.value} values, of latents of {latent.size}; multiples of {CELL} can be multiplied"
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


def load_native(
    native: Library, source: Source, config: EngineConfig, share: Share, group: TPGroup, *, progress: bool
) -> NativeExecutor:
    """Load a model that `why_not_native` has nothing against.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    assert config.kv_cache_dtype != "fp8", "why_not_native refuses it"
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if config.dtype == "bfloat16" else "float32"
    kv_dtype: Type = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    spec, groups = share.spec, groups_of(share.spec, config)
    shape = config.block_size, spec.num_kv_heads, spec.head_dim, kv_dtype, spec.kv_parts
    block = block_bytes(groups.depth, *shape)
    _, model = load_packed(
        source,
        dtype=dtype,
        quantization=config.quantization,
        max_model_len=num_positions(spec, config, CPU_KV_BYTES, block, groups),
        progress=progress,
        share=share,
    )
    num_blocks, states = kv_room(config, block, state_bytes(spec, 4), group)
    try:
        kv = PackedKV(groups.depth, num_blocks, *shape)
    except (OSError, OverflowError) as error:
        size = num_blocks * block
        raise ModelError(f"no memory for a KV cache of {size} bytes ({error}): lower kv_cache_bytes") from None
    head = read_head(source, share.whole)
    precision = precision_of(config)
    return NativeExecutor(
        native, model, kv, share, group, dtype=dtype, precision=precision, groups=groups, head=head, states=states
    )
