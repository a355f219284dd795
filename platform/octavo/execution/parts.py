"""A model taken apart: its embedding, each of its layers and its head alone, to find which one computes wrongly."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo.execution.state_storage import StateStorage
from octavo.models.decoder import Decoder
from octavo.models.spec import ModelSpec
from octavo.models.step_context import KVCache, StepContext
from octavo.step import Float32, Int32
from octavo_kernels.decoder import CELL, NativeDecoder, PackedKV, PackedModel, Type
from octavo_kernels.linear import PackedWeight, linear
from octavo_kernels.linear.formats import Precision
from octavo_kernels.native.library import Library
from octavo_kernels.paged_attention import PagedBatch
from octavo_kernels.rms_norm import rms_norm


class Parts(Protocol):
    """The three kinds of parts; tensors are float32 on the CPU.

    Attributes:
        num_bytes: of all weights in memory.
    """

    spec: ModelSpec
    num_bytes: int

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] int64, one sequence -> [T, D]."""
        ...

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        """One layer over T positions that are one sequence: [T, D] -> [T, D]."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Final norm, output matrix and soft cap: [T, D] -> [T, V]."""
        ...


class TorchParts:
    """Parts of a torch decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self.spec = decoder.spec
        self.num_bytes = decoder.weights.num_bytes
        self._decoder = decoder

    def embed(self, token_ids: Tensor) -> Tensor:
        """As in `Parts`."""
        ids = token_ids.to(self._decoder.device)
        return self._decoder.embed(ids, torch.arange(len(ids), device=ids.device)).float().cpu()

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        """As in `Parts`."""
        decoder, starts, contexts, tables = self._decoder, *_one_sequence(len(hidden))
        shape = (tables.size, CELL, self.spec.num_kv_heads, self.spec.head_dim)
        cache = torch.zeros(self.spec.kv_parts, *shape, dtype=decoder.dtype, device=decoder.device)
        layout = PagedBatch.build(starts, contexts, tables, CELL, decoder.device)
        kv = [KVCache(cache[0], cache[-1])] * self.spec.num_layers  # of which one is used
        states = None
        if self.spec.recurrence is not None:
            states = StateStorage(self.spec, 1, decoder.dtype, str(decoder.device)).step(None, 1)
        context = StepContext(layout, kv, states=states)
        residual = hidden.to(decoder.device, decoder.dtype)
        return decoder.layer(index, residual, context).float().cpu()

    def head(self, hidden: Tensor) -> Tensor:
        """As in `Parts`."""
        decoder = self._decoder
        return decoder.head(hidden.to(decoder.device, decoder.dtype)).cpu()


class NativeParts:
    """Parts of a packed model.

    Args:
        dtype: of K and V.
        precision: of products.
    """

    def __init__(
        self, library: Library, spec: ModelSpec, model: PackedModel, dtype: Type, precision: Precision
    ) -> None:
        self.spec = spec
        self.num_bytes = model.num_bytes
        self._library, self._model = library, model
        self._dtype, self._precision = dtype, precision

    def embed(self, token_ids: Tensor) -> Tensor:
        """As in `Parts`."""
        model, hidden = self._model, self._model.embedding.rows(token_ids) * self._model.embedding_scale
        if model.positions is not None:
            hidden = hidden + torch.from_numpy(model.positions[: len(hidden)].copy())
        if model.embedding_norm is None:
            return hidden
        return self._norm(hidden, model.embedding_norm, model.embedding_norm_bias)

    def _norm(self, x: Tensor, weight: Float32, bias: Float32 | None) -> Tensor:
        scale, eps = torch.from_numpy(weight.copy()), self._model.norm_eps
        if not self._model.layer_norm:
            return rms_norm(x, scale, eps)
        return F.layer_norm(x, scale.shape, scale, None if bias is None else torch.from_numpy(bias.copy()), eps)

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        """As in `Parts`: a model of one layer, whose embedding table holds the given rows."""
        table = PackedWeight.from_tensor(hidden.float().contiguous())
        plain = {"embedding": table, "embedding_scale": 1.0, "embedding_norm": None, "positions": None}
        alone = replace(self._model, **plain, layers=[self._model.layers[index]])  # type: ignore[arg-type]
        starts, contexts, tables = _one_sequence(len(hidden))
        kv = PackedKV(1, tables.size, CELL, self.spec.num_kv_heads, self.spec.head_dim, self._dtype, self.spec.kv_parts)
        decoder = NativeDecoder(self._library, alone, kv, precision=self._precision)
        rows = np.arange(len(hidden), dtype=np.int32)
        decoder.step(rows, starts, contexts, tables, np.zeros(0, np.int64))
        return torch.from_numpy(decoder.hidden(len(hidden)))

    def head(self, hidden: Tensor) -> Tensor:
        """As in `Parts`."""
        model = self._model
        normed = self._norm(hidden, model.final_norm, model.final_norm_bias) * model.logit_scale
        scores = linear(normed, model.head.weight, precision=self._precision)
        if model.head.bias is not None:
            scores = scores + torch.from_numpy(model.head.bias.copy())
        cap = model.logit_softcap
        return scores if cap is None else scores.div_(cap).tanh_().mul_(cap)


def _one_sequence(length: int) -> tuple[Int32, Int32, Int32]:
    """query_start, context_lens and block_tables of a step that computes all of one sequence, in blocks of `CELL`."""
    starts, contexts = np.array([0, length], np.int32), np.array([length], np.int32)
    return starts, contexts, np.arange(-(-length // CELL), dtype=np.int32)[None]
