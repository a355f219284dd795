"""`NativeEncoder`: a whole step of an encoder in one native call (`cpu.cpp`): packed texts in, one vector each out.

There is no reference in this folder: `octavo.models.encoder` runs the same models with the other ops, and the tests
compare the two.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo_kernels.decoder import ACTIVATIONS, Activation, PackedLinear
from octavo_kernels.linear import PackedWeight
from octavo_kernels.linear.formats import Precision
from octavo_kernels.native.library import Library

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

METHODS = ("cls", "mean", "last")
"""Ways of pooling by their numbers: a text's first state, the mean of all, its last."""

_EVERYTHING = 1 << 30
"""A reach beyond every text."""

_BEYOND = 16
"""Values behind a row of biases that are read and not used: places of the last cell of keys."""


@dataclass(frozen=True, slots=True)
class PackedNorm:
    """Weight and bias of a layer norm, or of an RMS norm."""

    weight: Float32  # [hidden]
    bias: Float32 | None = None  # [hidden]


@dataclass(frozen=True, slots=True)
class PackedEncoderLayer:
    """One layer; norms, biases and the rotary table are float32."""

    q: PackedLinear
    k: PackedLinear
    v: PackedLinear
    out: PackedLinear
    gate: PackedLinear | None  # None for an MLP without a gate
    up: PackedLinear
    down: PackedLinear
    attention_norm: PackedNorm | None  # before the branch or after it, as `PackedEncoder.norm_first` says; None: none
    mlp_norm: PackedNorm | None
    rotary: Float32 | None  # [positions, rotary_dim], cos then sin
    reach: int | None  # how far from a token those lie that it sees, on either side; None sees all

    def words(self) -> list[int]:
        """The words of `struct Layer` in records.h."""
        matrices = (self.q, self.k, self.v, self.out, self.gate, self.up, self.down)
        return [
            *(word for matrix in matrices for word in (matrix.words() if matrix else [0] * 5)),
            *(*_norm(self.attention_norm), *_norm(self.mlp_norm)),
            *(_address(self.rotary), 0 if self.rotary is None else self.rotary.shape[1]),
            _EVERYTHING if self.reach is None else self.reach,
        ]


@dataclass(frozen=True, slots=True)
class PackedEncoder:
    """A model's weights and settings for the native encoder.

    Attributes:
        position_offset: row of `positions` that a text's first token gets.
        norm_first: x + f(norm(x)); otherwise norm(x + f(x)).
        layer_norm: norms subtract the mean first.
        bias: [query_heads, 2 max_tokens - 1] added to scores, by the key's position less the query's + max_tokens - 1.
        max_tokens: of a text.
    """

    embedding: PackedWeight  # [vocab, hidden]
    positions: Float32 | None  # [positions, hidden]
    types: Float32 | None  # [types, hidden]
    position_offset: int
    embedding_norm: PackedNorm | None
    final_norm: PackedNorm | None
    layers: list[PackedEncoderLayer]
    query_heads: int
    kv_heads: int
    head_dim: int
    activation: Activation
    norm_first: bool
    layer_norm: bool
    bias: Float32 | None
    norm_eps: float
    attention_scale: float
    embedding_scale: float
    max_tokens: int

    @property
    def matrices(self) -> list[PackedWeight]:
        """Every matrix that multiplies a token."""
        return [
            linear.weight
            for layer in self.layers
            for linear in (layer.q, layer.k, layer.v, layer.out, layer.gate, layer.up, layer.down)
            if linear is not None
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices, the embedding included."""
        return sum(weight.data.nbytes for weight in (*self.matrices, self.embedding))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales included, per weight of the matrices."""
        return 8 * sum(w.data.nbytes for w in self.matrices) / sum(w.n * w.k for w in self.matrices)

    def words(self, precision: Precision, narrow: bool, bias: Float32 | None) -> list[int]:
        """The words of `struct Model` in records.h; `bias` has `_BEYOND` values behind each row."""
        sizes = self.embedding.k, self.query_heads, self.kv_heads, self.head_dim, self.layers[0].up.weight.n
        return [
            *sizes,
            *(
                ACTIVATIONS.index(self.activation),
                precision,
                narrow,
                self.norm_first,
                self.layer_norm,
                len(self.layers),
            ),
            *(*PackedLinear(self.embedding).words(), *_table(self.positions), *_table(self.types)),
            *(self.position_offset, *_norm(self.embedding_norm), *_norm(self.final_norm)),
            *(_address(bias), 0 if bias is None else bias.shape[1], self.max_tokens - 1),
        ]


class NativeEncoder:
    """Runs steps of one model.

    Args:
        library: the native library.
        model: its weights, which stay referenced.
        precision: what products do with their input.
        narrow: keys, values and attention's weights are bfloat16, not float32.
    """

    def __init__(self, library: Library, model: PackedEncoder, *, precision: Precision, narrow: bool) -> None:
        bias = None if model.bias is None else np.pad(model.bias, ((0, 0), (0, _BEYOND)))
        layers = np.array([layer.words() for layer in model.layers], np.int64)
        numbers = np.array([model.norm_eps, model.attention_scale, model.embedding_scale], np.float32)
        self._library, self._keep = library, (model, bias)
        self._hidden, self._max_tokens = model.embedding.k, model.max_tokens
        self._handle = library.call(
            "encoder_new", np.array(model.words(precision, narrow, bias), np.int64), numbers, layers
        )
        self._finalizer = weakref.finalize(self, library.call, "encoder_free", self._handle)

    def step(self, tokens: Int32, types: Int32 | None, starts: Int32, methods: Int32) -> Float32:
        """The pooled states of S packed texts, [S, hidden].

        Args:
            tokens: [T] ids, text after text.
            types: [T] token types; None means 0.
            starts: [S + 1] where each text begins in `tokens`.
            methods: [S] indices of `METHODS`.

        Raises:
            ValueError: a text is empty or longer than `max_tokens`.
        """
        return self._run(tokens, types, starts, methods, None)

    def states(self, tokens: Int32, types: Int32 | None, starts: Int32) -> Float32:
        """The final states of all tokens, [T, hidden]; otherwise as `step`."""
        out = np.empty((len(tokens), self._hidden), np.float32)
        self._run(tokens, types, starts, np.zeros(len(starts) - 1, np.int32), out)
        return out

    def _run(
        self, tokens: Int32, types: Int32 | None, starts: Int32, methods: Int32, states: Float32 | None
    ) -> Float32:
        lengths = np.diff(starts)
        if len(lengths) and not 0 < lengths.min() <= lengths.max() <= self._max_tokens:
            raise ValueError(f"texts have {lengths.min()} to {lengths.max()} tokens; must be 1 to {self._max_tokens}")
        pooled = np.empty((len(lengths), self._hidden), np.float32)
        if len(lengths):
            arrays = tokens, types, starts, len(lengths), methods
            self._library.call("encoder_step", self._handle, *arrays, pooled, states)
        return pooled


def _table(table: Float32 | None) -> list[int]:
    return [_address(table), 0 if table is None else len(table)]


def _norm(norm: PackedNorm | None) -> list[int]:
    return [0, 0] if norm is None else [_address(norm.weight), _address(norm.bias)]


def _address(array: Float32 | None) -> int:
    return 0 if array is None else array.ctypes.data
