"""The native executor of encoders: a step is whole texts, each of which becomes one vector, in one call on the CPU.

`dtype` and `activations` mean what they do for the native executor of decoders, and a text's vector has the same bits
whatever else is in the step, and on any number of threads.
"""

from __future__ import annotations

import time
from typing import Literal

import numpy as np

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.executor import Wait, finished
from octavo.execution.native_executor import described, precision_of
from octavo.layer_groups import ONE_GROUP
from octavo.models.head import Head, read_head
from octavo.models.packed import unpackable_formats
from octavo.models.packed_encoder import load_packed_encoder
from octavo.models.source_spec import read_spec, why_not_packed
from octavo.models.spec import ModelSpec
from octavo.request import Adapter
from octavo.source import Source
from octavo.step import Float32, Int32, PooledRow, StepBatch, StepResult
from octavo_kernels.encoder import METHODS, NativeEncoder, PackedEncoder
from octavo_kernels.linear.formats import Precision
from octavo_kernels.native.library import Library


class NativeEncoderExecutor:
    """An encoder and its head, without a cache: it has one block, which means nothing.

    Args:
        native: the library that runs it.
        model: its weights.
        head: what follows pooling, if anything does.
        dtype: that is computed in.
        precision: of products.
    """

    num_blocks = 1
    groups = ONE_GROUP
    max_in_flight = 1
    batch_invariant = True
    kv = local = states = None

    def __init__(
        self,
        native: Library,
        spec: ModelSpec,
        model: PackedEncoder,
        head: Head | None,
        *,
        dtype: Literal["float32", "bfloat16"],
        precision: Precision,
    ) -> None:
        self.spec = spec
        self._head = head
        self._encoder = NativeEncoder(native, model, precision=precision, narrow=dtype == "bfloat16")
        self._description = (
            f"{spec.family} on cpu ({native.level}, {native.threads} threads) in {described(dtype, precision)}, "
            f"{model.bits_per_weight:.1f} bits per weight, {model.num_bytes / 1e6:.1f} MB"
        )

    def __str__(self) -> str:
        return self._description

    def launch(self, batch: StepBatch) -> Wait:
        """As in `Executor`; the step has ended when this returns."""
        begin = time.perf_counter()
        vectors = self._vectors(batch) if batch.pooled else {}
        return finished(StepResult(np.zeros(0, np.int64), {}, [], time.perf_counter() - begin, vectors))

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`: encoders take none."""
        raise ConfigError(f"adapter {adapter.name!r} cannot be loaded: adapters of encoders are not supported")

    def drop_adapter(self, digest: str) -> None:
        """There is none."""

    def check_health(self) -> None:
        """As in `Executor`: there is nothing that could break apart from this process."""

    def close(self) -> None:
        """Drop the model."""
        del self._encoder

    def _vectors(self, batch: StepBatch) -> dict[int, Float32]:
        tokens, starts = (np.ascontiguousarray(x, np.int32) for x in (batch.token_ids, batch.query_start))
        methods = np.zeros(batch.num_seqs, np.int32)
        for row in batch.pooled:
            methods[row.row] = METHODS.index(row.method)
        pooled = self._encoder.step(tokens, self._types(batch.pooled, starts), starts, methods)
        rows = [row.row for row in batch.pooled]
        vectors = pooled[rows] if self._head is None else self._head(pooled[rows])
        return dict(zip(rows, vectors, strict=True))

    def _types(self, pooled: list[PooledRow], starts: Int32) -> Int32 | None:
        """Type 1 for the tokens of second texts, in a model that has it; None where all are of type 0."""
        assert self.spec.encoder is not None
        pairs = [(row.row, row.second) for row in pooled if row.second is not None]
        if not pairs or self.spec.encoder.token_types < 2:
            return None
        types = np.zeros(starts[-1], np.int32)
        for row, second in pairs:
            types[starts[row] + second : starts[row + 1]] = 1
        return types


def why_not_native_encoder(source: Source, config: EngineConfig) -> str | None:
    """What the native executor does not cover, in words; None when it covers all."""
    if config.load_format == "dummy":
        return "load_format is dummy"
    if config.dtype == "float16":
        return "dtype is float16; use float32 or bfloat16"
    if formats := unpackable_formats(source):
        return f"it holds {', '.join(formats)} blocks"
    return why_not_packed(source, config.quantization, read_spec(source))


def load_native_encoder(
    native: Library, source: Source, config: EngineConfig, *, progress: bool
) -> NativeEncoderExecutor:
    """Load an encoder that `why_not_native_encoder` has nothing against.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if config.dtype == "bfloat16" else "float32"
    spec, model = load_packed_encoder(
        source,
        dtype=dtype,
        quantization=config.quantization,
        max_model_len=config.max_model_len,
        progress=progress,
    )
    head = read_head(source, spec)
    return NativeEncoderExecutor(native, spec, model, head, dtype=dtype, precision=precision_of(config))
