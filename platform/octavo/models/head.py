"""What follows pooling: a classifier, or the dense layers of sentence-transformers. In numpy, for every executor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo import gguf_header, safetensors_header
from octavo.errors import ModelError
from octavo.model_files import reading
from octavo.models.encoder_spec import DenseActivation, DenseSpec
from octavo.models.spec import ModelSpec
from octavo.models.weights.names import plain_name
from octavo.source import Source

Float32 = npt.NDArray[np.float32]
Entry = safetensors_header.Entry | gguf_header.Entry


@dataclass(frozen=True, slots=True)
class Dense:
    """One layer, with its weights in float32."""

    spec: DenseSpec
    weight: Float32  # [rows, columns]
    bias: Float32 | None  # [rows]
    norm: Float32 | None  # [rows]
    norm_bias: Float32 | None  # [rows]


class Head:
    """A head ready to run.

    Args:
        layers: in order.
        norm_eps: of their norms.
    """

    def __init__(self, layers: list[Dense], norm_eps: float) -> None:
        self._layers = layers
        self._eps = np.float32(norm_eps)

    def __call__(self, pooled: Float32) -> Float32:
        """[R, D] -> [R, rows of the last layer]; a row's result has nothing to do with the others."""
        return np.stack([self._row(row) for row in pooled])

    def _row(self, x: Float32) -> Float32:
        for layer in self._layers:
            x = layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias
            x = _ACTIVATIONS[layer.spec.activation](x)
            if layer.norm is not None:
                centred = x - x.mean()
                x = centred / np.sqrt(np.square(centred).mean() + self._eps) * layer.norm
                x = x if layer.norm_bias is None else x + layer.norm_bias
        return x


def read_head(source: Source, spec: ModelSpec, *, dummy: bool = False) -> Head | None:
    """The head of a model; None where nothing follows pooling.

    Args:
        dummy: take random weights.

    Raises:
        ModelError: a tensor is missing, of another shape, or of a type that is not supported; the message names it.
    """
    if spec.head is None:
        return None
    find = _random if dummy else _Files(source).find
    layers = [_dense(find, layer, spec) for layer in spec.head.layers]
    return Head(layers, spec.norm_eps)


_Find = Callable[[str, tuple[int, ...]], Float32]


def _dense(find: _Find, layer: DenseSpec, spec: ModelSpec) -> Dense:
    rows, norm = (layer.rows,), layer.norm
    return Dense(
        layer,
        find(f"{layer.stored}.weight", (layer.rows, layer.columns)),
        find(f"{layer.stored}.bias", rows) if layer.bias else None,
        None if norm is None else find(f"{norm}.weight", rows),
        find(f"{norm}.bias", rows) if norm is not None and spec.norm_bias else None,
    )


def _random(name: str, shape: tuple[int, ...]) -> Float32:
    return np.random.default_rng(len(name)).standard_normal(shape, np.float32) * np.float32(0.02)


class _Files:
    """A checkpoint's tensors by name; FOLDER/NAME is in a file of its own, as sentence-transformers writes them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._entries = _entries(source)

    def find(self, name: str, shape: tuple[int, ...]) -> Float32:
        """A tensor in float32."""
        folder, _, own = name.rpartition("/")
        entries = _of_folder(self._source.path / folder) if folder else self._entries
        if (entry := entries.get(own)) is None:
            raise ModelError(f"the checkpoint lacks {name}")
        if entry.shape != shape:
            raise ModelError(f"{name} is {list(entry.shape)} instead of {list(shape)}")
        return _floats(entry)


def _entries(source: Source) -> Mapping[str, Entry]:
    return gguf_header.read_directory(source.path) if source.kind == "gguf" else _of_folder(source.path)


def _of_folder(folder: Path) -> dict[str, Entry]:
    headers = map(safetensors_header.read_header, safetensors_header.weight_files(folder))
    return {plain_name(name): entry for header in headers for name, entry in header.items()}


def _floats(entry: Entry) -> Float32:
    kind = entry.dtype if isinstance(entry, safetensors_header.Entry) else entry.format
    if kind not in _STORED:
        raise ModelError(f"{entry.name} is stored as {kind}, which is not supported in a head")
    with reading(entry.file):
        values = np.fromfile(entry.file, _STORED[kind], math.prod(entry.shape), offset=entry.offset)
    if kind == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float32).reshape(entry.shape)


_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


def _gelu(x: Float32) -> Float32:
    return np.array([value * 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))) for value in x.tolist()], np.float32)


def _gelu_tanh(x: Float32) -> Float32:
    inner: Float32 = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.asarray(x * np.float32(0.5) * (1 + np.tanh(inner)))


def _sigmoid(x: Float32) -> Float32:
    return np.asarray((np.tanh(x * np.float32(0.5)) + 1) * np.float32(0.5))


_ACTIVATIONS: dict[DenseActivation, Callable[[Float32], Float32]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
}
