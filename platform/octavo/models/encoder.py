"""The encoder: runs any `ModelSpec` with an `EncoderSpec` over the texts of a step, without padding or a cache.

This is the specification of what the native encoder computes, and what runs encoders on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo.models.relative_positions import relative_buckets
from octavo.models.rope import cos_sin_table
from octavo.models.spec import Activation, ModelSpec, Rope
from octavo.models.text_attention import Group, attend, attend_group, groups_of, padded
from octavo.models.weights.encoder_layout import EncoderLayer, EncoderWeights
from octavo.models.weights.layout import Norm, keep_one_order

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, slots=True)
class Texts:
    """The S texts of a step, one after the other in T tokens.

    Attributes:
        starts: [S + 1] where each text begins; the last is T.
        seconds: of each text that is a pair, index in it of the second one's first token.
    """

    starts: list[int]
    seconds: list[int | None]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Begin and end of each text."""
        return list(pairwise(self.starts))

    @property
    def positions(self) -> list[int]:
        """[T] index of each token in its text."""
        return [i for begin, end in self.ranges for i in range(end - begin)]

    @property
    def types(self) -> list[int]:
        """[T] 0, or 1 for the tokens of a second text."""
        marks = zip(self.ranges, self.seconds, strict=True)
        return [int(second is not None and i >= second) for (begin, end), second in marks for i in range(end - begin)]

    def alone(self, index: int) -> Texts:
        """One of them."""
        begin, end = self.ranges[index]
        return Texts([0, end - begin], [self.seconds[index]])


@dataclass(frozen=True, slots=True)
class _Step:
    """What every layer is given of a step beside the activations of its T tokens."""

    texts: Texts
    positions: Tensor  # [T] in their texts
    bias: Tensor | None  # [H, longest text, longest text]
    groups: list[Group]  # [] where texts attend one by one


class Encoder:
    """A model ready to run.

    Args:
        spec: with an `EncoderSpec`.
        weights: they decide type and device.
        num_positions: rows of the rotary tables: the longest text that will be run.

    All but the last are attributes too.
    """

    def __init__(self, spec: ModelSpec, weights: EncoderWeights, num_positions: int) -> None:
        assert spec.encoder is not None
        self.spec = spec
        self.weights = weights
        self.num_positions = num_positions
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._encoder = spec.encoder
        self._activation = _ACTIVATIONS[spec.activation]
        self._one_order, self._grouped = False, self.device.type != "cpu"
        self._tables: dict[Rope, Tensor] = {
            rope: cos_sin_table(rope, num_positions).to(self.device) for rope in spec.ropes if rope.rotary_dim
        }

    def keep_one_order(self) -> None:
        """From now on, give a text the same bits whatever else is in the step.

        On a GPU matrix products have one order of summation for any number of rows. No library on a CPU does that:
        there texts run one by one.

        Raises:
            ConfigError: on a GPU, for weights that bitsandbytes multiplies.
        """
        self._one_order, self._grouped = True, False
        if self.device.type != "cpu":
            keep_one_order(self.weights.linears)

    @torch.no_grad()
    def forward(self, tokens: Tensor, texts: Texts) -> Tensor:
        """[T] token ids -> [T, D] final states."""
        if self._one_order and self.device.type == "cpu" and len(texts.seconds) > 1:
            parts = zip(texts.ranges, range(len(texts.seconds)), strict=True)
            return torch.cat([self.forward(tokens[begin:end], texts.alone(i)) for (begin, end), i in parts])
        step = self._step(texts)
        x = self._embed(tokens, step)
        for index, layer in enumerate(self.weights.layers):
            x = self._layer(index, layer, x, step)
        return self._norm(x, self.weights.final_norm)

    def _step(self, texts: Texts) -> _Step:
        positions = torch.tensor(texts.positions, device=self.device)
        bias = self._relative_bias(padded(max(end - begin for begin, end in texts.ranges)))
        return _Step(texts, positions, bias, groups_of(texts.ranges, self.device) if self._grouped else [])

    def _embed(self, tokens: Tensor, step: _Step) -> Tensor:
        weights, encoder = self.weights, self._encoder
        x = F.embedding(tokens, weights.embedding).float()
        if weights.type_embedding is not None:
            types = torch.tensor(step.texts.types, device=self.device).clamp_(max=encoder.token_types - 1)
            x = x + F.embedding(types, weights.type_embedding)
        if weights.position_embedding is not None:
            x = x + F.embedding(step.positions + encoder.position_offset, weights.position_embedding)
        return self._norm(x, weights.embedding_norm).to(self.dtype)

    def _layer(self, index: int, layer: EncoderLayer, x: Tensor, step: _Step) -> Tensor:
        if self._encoder.norm_first:
            x = x + self._attention(index, layer, self._norm(x, layer.attention_norm), step)
            return x + self._mlp(layer, self._norm(x, layer.mlp_norm))
        x = self._norm(x + self._attention(index, layer, x, step), layer.attention_norm)
        return self._norm(x + self._mlp(layer, x), layer.mlp_norm)

    def _norm(self, x: Tensor, norm: Norm | None) -> Tensor:
        if norm is None:
            return x
        return F.layer_norm(x.float(), norm.weight.shape, norm.weight, norm.bias, self.spec.norm_eps).to(x.dtype)

    def _mlp(self, layer: EncoderLayer, x: Tensor) -> Tensor:
        inner = layer.gate_up.multiply(x)
        if self.spec.gated:
            gate, up = inner.chunk(2, dim=-1)
            return layer.down.multiply(self._activation(gate) * up)
        return layer.down.multiply(self._activation(inner))

    def _attention(self, index: int, layer: EncoderLayer, x: Tensor, step: _Step) -> Tensor:
        spec = self.spec
        qkv = layer.qkv.multiply(x).view(len(x), 3, spec.num_heads, spec.head_dim)
        table = self._tables.get(spec.layer_rope(index))
        if table is not None:
            qkv = torch.cat([_rotated(qkv[:, :2], table[step.positions]), qkv[:, 2:]], dim=1)
        return layer.out.multiply(self._attended(qkv, spec.windows[index], step))

    def _attended(self, qkv: Tensor, window: int | None, step: _Step) -> Tensor:
        """[T, 3, H, head_dim] -> [T, H head_dim]."""
        how = window, step.bias, self.spec.attention_scale
        if not step.groups:
            return torch.cat([attend(qkv[begin:end], *how) for begin, end in step.texts.ranges])
        attended = torch.empty_like(qkv[:, 0]).flatten(1)
        for group in step.groups:
            attended[group.tokens[group.is_real]] = attend_group(qkv, group, *how)
        return attended

    def _relative_bias(self, length: int) -> Tensor | None:
        """[H, L, L] to be added to the scores of a text of this length; of a shorter one, its upper left corner."""
        if self.weights.relative_bias is None:
            return None
        buckets = relative_buckets(self._encoder, np.arange(1 - length, length))
        values = self.weights.relative_bias[torch.from_numpy(buckets).to(self.device)].T  # [H, 2 L - 1]
        places = torch.arange(length, device=self.device)
        return values[:, places - places[:, None] + length - 1]


def _rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    """[T, n, H, head_dim] turned by the angles [T, rotary_dim] of each token's position."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[:, None, None, :half], cos_sin[:, None, None, half:]
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :].float()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x.dtype)
