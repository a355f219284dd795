"""A matrix that adapters change for some tokens of a step (torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from octavo.models.adapters import LowRank, Place
from octavo.models.spec import ModelSpec
from octavo.models.step_context import StepContext
from octavo.models.weights.layout import Linear, Weights
from octavo.models.weights.quantized import QuantizedLinear
from octavo_kernels.lora import add_lora_
from octavo_kernels.lora.packed import SITES
from octavo_kernels.lora.segments import WORDS, Change


class Adapted:
    """y = x W^T + b, and for the tokens of an adapter (x A^T) B^T beside it.

    Args:
        base: W and b.
        index: of the matrix, as in `DeviceAdapter`.
        sizes: rows of the parts that are stacked in it.
    """

    def __init__(self, base: Linear | QuantizedLinear, index: int, sizes: Sequence[int]) -> None:
        self._base, self._index, self._sizes = base, index, sizes

    @property
    def nbytes(self) -> int:
        """Of the model's own matrix."""
        return self._base.nbytes

    def __call__(self, x: Tensor, context: StepContext) -> Tensor:
        """As `Linear`."""
        y = self._base(x, context)
        if (adapters := context.adapters) is not None:
            changes = [each[self._index] for each in adapters.changes]
            add_lora_(y, x, self._sizes, adapters.segments, changes, adapters.words[:, self._index])
        return y

    def multiply(self, x: Tensor) -> Tensor:
        """Without adapters."""
        return self._base.multiply(x)


def take_adapters(weights: Weights, spec: ModelSpec) -> None:
    """Have the layers of a model look at `StepContext.adapters` from now on.

    Args:
        spec: of these weights: a rank's own.
    """
    if any(isinstance(cast(object, layer.qkv), Adapted) for layer in weights.layers):
        return
    for i, layer in enumerate(weights.layers):
        first, inner = len(SITES) * i, spec.mlp_size(i)
        if i not in spec.recurrent:
            layer.qkv = _adapted(layer.qkv, first, [spec.q_size, spec.kv_size, spec.kv_size])
            layer.out = _adapted(layer.out, first + 1, [spec.hidden_size])
        if layer.gate_up is not None and layer.down is not None:
            layer.gate_up = _adapted(layer.gate_up, first + 2, [inner] * (2 if spec.gated else 1))
            layer.down = _adapted(layer.down, first + 3, [spec.hidden_size])


def _adapted(base: Linear | QuantizedLinear, index: int, sizes: list[int]) -> Linear:
    """What stands in a matrix's place, where a loaded model is only called."""
    return cast(Linear, Adapted(base, index, sizes))


@dataclass(frozen=True, slots=True)
class DeviceAdapter:
    """An adapter on a device.

    Attributes:
        changes: of each matrix: a layer's `SITES` one after the other; None: it is not changed.
        words: [matrices, WORDS] theirs, on the device.
    """

    changes: Sequence[Change | None]
    words: Tensor

    @property
    def nbytes(self) -> int:
        """Of A's and B's."""
        return sum(change.nbytes for change in self.changes if change is not None)


def on_device(
    adapter: Mapping[Place, LowRank], spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> DeviceAdapter:
    """An adapter of a model, or of a rank's share of it.

    Args:
        dtype: of the model's activations, which a GPU multiplies with; elsewhere A and B are float32.
    """
    kept = dtype if device.type == "cuda" else torch.float32

    def tensor(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(device, kept)

    def change(layer: int, site: Sequence[str]) -> Change | None:
        found = [adapter.get((layer, part)) for part in site if spec.gated or part != "gate"]
        pairs = [None if low is None else (tensor(low.a), tensor(low.b)) for low in found]
        return Change.of(pairs) if any(pairs) else None

    changes = [change(layer, site) for layer in range(spec.num_layers) for site in SITES]
    words = [[0] * WORDS if each is None else each.words for each in changes]
    return DeviceAdapter(changes, torch.tensor(words, device=device))
