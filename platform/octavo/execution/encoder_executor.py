"""The torch executor of encoders: a step is whole texts, each of which becomes one vector."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.execution.executor import Wait, finished
from octavo.execution.transfer import to_device
from octavo.layer_groups import ONE_GROUP
from octavo.models.encoder import Encoder, Texts
from octavo.models.head import Head, read_head
from octavo.models.load import load_encoder
from octavo.models.source_spec import read_spec
from octavo.models.spec import ModelSpec
from octavo.request import Adapter
from octavo.source import Source
from octavo.step import Float32, StepBatch, StepResult


class EncoderExecutor:
    """An encoder and its head, without a cache: it has one block, which means nothing.

    Args:
        head: what follows pooling, if anything does.
    """

    num_blocks = 1
    groups = ONE_GROUP
    max_in_flight = 1
    batch_invariant = False
    kv = local = states = None

    def __init__(self, encoder: Encoder, head: Head | None) -> None:
        self._encoder = encoder
        self._head = head

    @property
    def spec(self) -> ModelSpec:
        """As in `Executor`."""
        return self._encoder.spec

    def __str__(self) -> str:
        encoder = self._encoder
        return f"{encoder.spec.family} in {str(encoder.dtype).removeprefix('torch.')} on {encoder.device}"

    def launch(self, batch: StepBatch) -> Wait:
        """As in `Executor`; the step has ended when this returns."""
        started = time.perf_counter()
        vectors = self._vectors(batch) if batch.pooled else {}
        seconds = time.perf_counter() - started
        return finished(StepResult(np.zeros(0, np.int64), {}, [], seconds, vectors))

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`: encoders take none."""
        raise ConfigError(f"adapter {adapter.name!r} cannot be loaded: adapters of encoders are not supported")

    def drop_adapter(self, digest: str) -> None:
        """There is none."""

    def check_health(self) -> None:
        """As in `Executor`: there is nothing that could break apart from this process."""

    def close(self) -> None:
        """As in `Executor`: memory goes with the object."""

    def _vectors(self, batch: StepBatch) -> dict[int, Float32]:
        seconds: list[int | None] = [None] * batch.num_seqs
        for row in batch.pooled:
            seconds[row.row] = row.second
        texts = Texts(batch.query_start.tolist(), seconds)
        states = self._encoder.forward(to_device(batch.token_ids, str(self._encoder.device)), texts)
        chosen = [_pooled(states[slice(*texts.ranges[row.row])], row.method) for row in batch.pooled]
        pooled = torch.stack(chosen).cpu().numpy()
        vectors = pooled if self._head is None else self._head(pooled)
        return {row.row: vector for row, vector in zip(batch.pooled, vectors, strict=True)}


def _pooled(states: Tensor, method: str) -> Tensor:
    """One text's states [L, D] as one in float32."""
    if method == "mean":
        return states.float().mean(0)
    return states[0 if method == "cls" else -1].float()


def load_torch_encoder(source: Source, config: EngineConfig, device: str, *, progress: bool) -> EncoderExecutor:
    """Load any encoder that Octavo knows.

    On a CPU, and elsewhere with `batch_invariant`, a text's vector has the same bits whatever else is in the step.

    Args:
        device: "cpu" or "cuda:N".

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    is_dummy = config.load_format == "dummy"
    head = read_head(source, read_spec(source), dummy=is_dummy)
    try:
        encoder = load_encoder(
            source,
            dtype=config.dtype,
            device=device,
            quantization=config.quantization,
            max_model_len=config.max_model_len,
            load_format=config.load_format,
            progress=progress,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(f"the weights of {source.name} do not fit into the GPU: {error}") from None
    if config.batch_invariant or device == "cpu":
        encoder.keep_one_order()
    return EncoderExecutor(encoder, head)
