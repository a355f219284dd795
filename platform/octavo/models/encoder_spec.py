"""`EncoderSpec` and `HeadSpec`: what a `ModelSpec` says of models that make a vector or classes of a text.

An encoder computes whole texts, whose tokens all see each other, and keeps no keys and values. Its layers are, with one
norm before each branch (`norm_first`, ModernBERT) or one after it (BERT; there is no final norm then):

    x  = x + attention(attention_norm(x))          x  = attention_norm(x + attention(x))
    x  = x + mlp(mlp_norm(x))                      x  = mlp_norm(x + mlp(x))

The parts of its weights, by the names that slots and packed parts have; those of a layer have its index, others None:

    embedding           weight [V, D]
    position_embedding  weight [positions, D]         a text's token i gets row i + position_offset
    type_embedding      weight [token_types, D]       row 0; from `Pooling.second` on row 1, where there are two
    embedding_norm      weight, bias [D]              of the sum of these three
    relative_bias       weight [buckets, H]           added to the attention scores of every layer
    attention_norm, mlp_norm   weight, bias [D]       (layer) without biases unless `ModelSpec.norm_bias`
    q, k, v, out, gate, up, down   weight, bias       (layer) as a decoder's
    final_norm          weight, bias [D]              only where norms are first

An encoder has no `lm_head`. In packed form the layers' matrices and `embedding` are `PackedWeight`s, and everything
else is float32. A head is no part of these: `head.py` reads and runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.errors import ModelError

_LARGEST = 1 << 20
"""Most values that a layer of a head takes or gives."""

DenseActivation = Literal["identity", "tanh", "relu", "gelu", "gelu_tanh", "silu", "sigmoid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """How an encoder differs from a decoder of the same `ModelSpec`.

    Attributes:
        norm_first: norms come before the branches, and there is a final one.
        first_norm: the first layer's attention has a norm; ModernBERT's has none, as the embeddings were just normed.
        embedding_norm: a norm of the embeddings.
        positions: rows of the table of learned positions; 0 without one.
        position_offset: the table's row of the first token (2 in RoBERTa, which begins after its padding's row).
        token_types: rows of the table of token types; 0 without one.
        buckets: of the relative positions whose bias is learned (Raffel et al. 2019); 0 without a bias.
        max_distance: from which on all relative positions are in the last bucket.
    """

    norm_first: bool = False
    first_norm: bool = True
    embedding_norm: bool = True
    positions: int = 0
    position_offset: int = 0
    token_types: int = 0
    buckets: int = 0
    max_distance: int = 128

    def __post_init__(self) -> None:
        for name in ("positions", "position_offset", "token_types", "buckets", "max_distance"):
            if type(value := getattr(self, name)) is not int or value < 0:
                raise ModelError(f"{name} is {str(value)[:40]}, which is not a whole number of at least 0")
        if self.buckets and (self.buckets % 4 or self.max_distance <= self.buckets // 4):
            raise ModelError(f"{self.buckets} buckets up to distance {self.max_distance} are no relative positions")

    @property
    def has_final_norm(self) -> bool:
        return self.norm_first


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """One layer of a head: norm(activation(x W^T + b)).

    Attributes:
        rows, columns: of W.
        stored: name of W and b in the checkpoint, without ".weight" and ".bias"; FOLDER/NAME in a file of their own.
        norm: name of a layer norm at the end, with `ModelSpec.norm_eps`; None where there is none.
    """

    rows: int
    columns: int
    stored: str
    bias: bool = True
    activation: DenseActivation = "identity"
    norm: str | None = None


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What follows pooling, in float32: a classifier, or the dense layers of sentence-transformers.

    Raises:
        ModelError: on construction, if one layer's rows are not the next one's columns.
    """

    layers: tuple[DenseSpec, ...]

    def __post_init__(self) -> None:
        sizes = [layer.rows for layer in self.layers] + [layer.columns for layer in self.layers]
        if not sizes or any(type(size) is not int or not 0 < size <= _LARGEST for size in sizes):
            raise ModelError(f"the head's sizes are {str(sizes)[:80]}: they must be whole numbers of 1 to {_LARGEST}")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.rows != after.columns:
                raise ModelError(f"a layer of the head has {before.rows} rows, the next one {after.columns} columns")

    @property
    def size(self) -> int:
        """Values of the result."""
        return self.layers[-1].rows

    @property
    def stored(self) -> frozenset[str]:
        """Names of all its tensors in the checkpoint."""
        names = [name for layer in self.layers for name in (layer.stored, layer.norm) if name is not None]
        return frozenset(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
