"""The layout of an encoder's weights in memory, as `layout.py` has it for decoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.models.spec import ModelSpec
from octavo.models.weights.layout import (
    Linear,
    Norm,
    PartOfModel,
    Slot,
    linear_slots,
    new_linear,
    norm_slots,
    slot_of,
)
from octavo.models.weights.quantized import Matrix, QuantizedLinear


@dataclass(slots=True)
class EncoderLayer:
    """One layer."""

    attention_norm: Norm | None
    qkv: Linear | QuantizedLinear  # [3 D, D]
    out: Linear | QuantizedLinear  # [D, D]
    mlp_norm: Norm
    gate_up: Linear | QuantizedLinear  # [2 I, D]; of an MLP without a gate [I, D]
    down: Linear | QuantizedLinear  # [D, I]


@dataclass(slots=True)
class EncoderWeights:
    """A whole encoder; what `EncoderSpec` says it lacks is None."""

    embedding: Tensor  # [V, D]
    position_embedding: Tensor | None  # [positions, D] float32, as the two below
    type_embedding: Tensor | None  # [token_types, D]
    relative_bias: Tensor | None  # [buckets, H]
    embedding_norm: Norm | None
    layers: list[EncoderLayer]
    final_norm: Norm | None

    @property
    def linears(self) -> list[Linear | QuantizedLinear]:
        """Every matrix but the tables."""
        return [matrix for layer in self.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)]


def allocate_encoder(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, *, quantized: bool = False
) -> EncoderWeights:
    """Allocate the weights of an encoder, not yet filled; arguments as in `allocate`."""
    encoder, width, inner = spec.encoder, spec.hidden_size, spec.intermediate_size
    assert encoder is not None
    place = torch.device("meta") if quantized else device

    def linear(rows: int, columns: int, bias: bool) -> Linear:
        return new_linear(rows, columns, bias=bias, dtype=dtype, device=device, place=place)

    def table(rows: int, columns: int) -> Tensor | None:
        return torch.empty(rows, columns, dtype=torch.float32, device=device) if rows else None

    def norm(present: bool = True) -> Norm | None:
        weight, bias = (torch.empty(width, dtype=torch.float32, device=device) for _ in range(2))
        return Norm(weight, bias if spec.norm_bias else None) if present else None

    def layer(index: int) -> EncoderLayer:
        mlp_norm = norm()
        assert mlp_norm is not None
        return EncoderLayer(
            attention_norm=norm(index > 0 or encoder.first_norm),
            qkv=linear(spec.q_size + 2 * spec.kv_size, width, spec.qkv_bias),
            out=linear(width, spec.q_size, spec.out_bias),
            mlp_norm=mlp_norm,
            gate_up=linear(2 * inner if spec.gated else inner, width, spec.mlp_bias),
            down=linear(width, inner, spec.mlp_bias),
        )

    return EncoderWeights(
        embedding=torch.empty(spec.vocab_size, width, dtype=dtype, device=device),
        position_embedding=table(encoder.positions, width),
        type_embedding=table(encoder.token_types, width),
        relative_bias=table(encoder.buckets, spec.num_heads),
        embedding_norm=norm(encoder.embedding_norm),
        layers=[layer(i) for i in range(spec.num_layers)],
        final_norm=norm(encoder.has_final_norm),
    )


def encoder_slots(weights: EncoderWeights, spec: ModelSpec) -> list[Slot]:
    """The destination of every tensor in a checkpoint, but the head's."""
    tables = ("embedding", "position_embedding", "type_embedding", "relative_bias")
    places = [slot_of(None, part, "weight", x) for part in tables if (x := getattr(weights, part)) is not None]
    places += norm_slots(None, embedding_norm=weights.embedding_norm, final_norm=weights.final_norm)
    for index, layer in enumerate(weights.layers):
        places += _layer_slots(index, layer, spec)
    return places


def _layer_slots(index: int, layer: EncoderLayer, spec: ModelSpec) -> list[Slot]:
    gate_up = ("gate", "up") if spec.gated else ("up",)
    return [
        *linear_slots(index, layer.qkv, {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}),
        *linear_slots(index, layer.out, {"out": spec.hidden_size}),
        *linear_slots(index, layer.gate_up, dict.fromkeys(gate_up, spec.intermediate_size)),
        *linear_slots(index, layer.down, {"down": spec.hidden_size}),
        *norm_slots(index, attention_norm=layer.attention_norm, mlp_norm=layer.mlp_norm),
    ]


def put_quantized_layers(weights: EncoderWeights, parts: dict[PartOfModel, Matrix]) -> None:
    """Replace the layers' matrices by quantised ones, which are removed from `parts`."""

    def linear(layer: int, old: Linear | QuantizedLinear, *names: str) -> QuantizedLinear:
        found = [parts.pop((layer, name, None)) for name in names if (layer, name, None) in parts]
        return QuantizedLinear.of(found, old.bias)

    for i, layer in enumerate(weights.layers):
        layer.qkv, layer.out = linear(i, layer.qkv, "q", "k", "v"), linear(i, layer.out, "out")
        layer.gate_up, layer.down = linear(i, layer.gate_up, "gate", "up"), linear(i, layer.down, "down")
