"""A matrix that adapters change for some tokens of a step (torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from octavo.models.adapters import LowRank, Place
from octavo.models.spec import ModelSpec
from octavo.models.step_context import StepContext
from octavo.models.weights.layout import Linear, Weights
from octavo.models.weights.quantized import QuantizedLinear
from octavo_kernels.lora.reference import lora


class Adapted:
    """y = x W^T + b, and for the tokens of an adapter (x A^T) B^T beside it, which is computed in float32.

    Args:
        base: W and b.
        places: which of a layer's parts are stacked in it, and their rows.
    """

    def __init__(self, base: Linear | QuantizedLinear, places: Mapping[Place, range]) -> None:
        self._base = base
        self._places = places

    @property
    def nbytes(self) -> int:
        """Of the model's own matrix."""
        return self._base.nbytes

    def __call__(self, x: Tensor, context: StepContext) -> Tensor:
        """As `Linear`."""
        y = self._base(x, context)
        for adapter in context.adapters:
            for place, rows in self._places.items():
                if place in adapter.matrices:
                    self._add(y, rows, lora(x[adapter.tokens], *adapter.matrices[place]), adapter.tokens)
        return y

    def multiply(self, x: Tensor) -> Tensor:
        """Without adapters."""
        return self._base.multiply(x)

    @staticmethod
    def _add(y: Tensor, rows: range, change: Tensor, tokens: Tensor) -> None:
        part = y[:, rows.start : rows.stop]
        part[tokens] = (part[tokens].float() + change).to(y.dtype)


def take_adapters(weights: Weights, spec: ModelSpec) -> None:
    """Have the layers of a model look at `StepContext.adapters` from now on.

    Args:
        spec: of these weights: a rank's own.
    """
    if isinstance(cast(object, weights.layers[0].qkv), Adapted):
        return
    for i, layer in enumerate(weights.layers):
        inner = spec.mlp_size(i)
        layer.qkv = _adapted(layer.qkv, i, {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size})
        layer.out = _adapted(layer.out, i, {"out": spec.hidden_size})
        if layer.gate_up is not None and layer.down is not None:
            layer.gate_up = _adapted(layer.gate_up, i, dict.fromkeys(("gate", "up") if spec.gated else ("up",), inner))
            layer.down = _adapted(layer.down, i, {"down": spec.hidden_size})


def _adapted(base: Linear | QuantizedLinear, layer: int, sizes: dict[str, int]) -> Linear:
    """What stands in a matrix's place, where a loaded model is only called."""
    places, start = {}, 0
    for part, size in sizes.items():
        places[layer, part] = range(start, start + size)
        start += size
    return cast(Linear, Adapted(base, places))


def on_device(adapter: Mapping[Place, LowRank], device: torch.device) -> dict[Place, tuple[Tensor, Tensor]]:
    """A and B of each place as tensors."""
    return {place: (_tensor(low.a, device), _tensor(low.b, device)) for place, low in adapter.items()}


def _tensor(values: object, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
