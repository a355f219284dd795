"""Memory in bytes: weights, keys and values per token, and activations."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.planning.shape import Shape, Tensors

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
"""Types: the first three for weights and activations, all of them for the KV cache."""

_MATRICES = ("linear", "expert", "head", "embedding")
_NORM_BYTES = 4  # our loader keeps norms in float32


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are stored in memory.

    Attributes:
        bits: bits per weight.
        group: weights of a row that share a scale; None means the whole row.
        group_bytes: bytes of a group's scale and zero point.
        roles: roles of the tensors that are quantised.
        compute: the type in which matrices are multiplied if activations are quantised too; None means the model's own.
    """

    name: str
    bits: float
    group: int | None = None
    group_bytes: float = 0.0
    roles: tuple[str, ...] = ("linear", "expert")
    compute: str | None = None

    def matrix_bytes(self, rows: int, columns: int) -> float:
        """Bytes of one matrix with its scales."""
        groups = rows * math.ceil(columns / (self.group or columns))
        return rows * columns * self.bits / 8 + groups * self.group_bytes


_QUANTIZATIONS = {
    # LLM.int8() (Dettmers et al. 2022): a float32 scale per row
    "int8": Quantization("int8", 8, None, 4, compute="int8"),
    "fp8": Quantization("fp8", 8, None, 4, compute="fp8"),
    # as in published GPTQ and AWQ files: groups of 128 with a 16-bit scale and a 4-bit zero point
    "int4": Quantization("int4", 4, 128, 2.5),
    # QLoRA (Dettmers et al. 2023) without double quantisation: blocks of 64 with a float32 maximum
    "nf4": Quantization("nf4", 4, 64, 4),
}


def find_quantization(name: str, shape: Shape) -> Quantization | None:
    """The scheme called `name`: none, int8, fp8, int4, nf4, gguf (a file's own blocks) or a GGUF block format.

    Raises:
        ConfigError: unknown, naming the nearest that exists; or "gguf" for a model that is no GGUF file.
    """
    if name == "none":
        return None
    if name == "gguf":
        if shape.stored_bits is None:
            raise ConfigError("quantization 'gguf' keeps the blocks of a GGUF file, and this model is none")
        return Quantization("gguf", shape.stored_bits, roles=_MATRICES)
    if name in _QUANTIZATIONS:
        return _QUANTIZATIONS[name]
    blocks = _block_formats()
    if name.upper() in blocks:
        return Quantization(name.upper(), blocks[name.upper()], roles=_MATRICES)
    valid = ["none", "gguf", *_QUANTIZATIONS, *blocks]
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    raise ConfigError(f"unknown quantization {name!r}: " + (f"did you mean {near[0]!r}?" if near else ", ".join(valid)))


def _block_formats() -> dict[str, float]:
    """Bits per weight of GGUF's quantised formats, scales included."""
    from gguf import GGML_QUANT_SIZES

    return {kind.name: 8 * size / values for kind, (values, size) in GGML_QUANT_SIZES.items() if values > 1}


def legal_ranks(shape: Shape, ranks: int) -> bool:
    """Whether `ranks` can share the model: whole heads for each, and key-value heads divided or copied evenly.
    Recurrent layers are not shared."""
    heads, kv_heads = shape.num_heads, shape.num_kv_heads
    if ranks > 1 and shape.recurrent_layers:
        return False
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


@dataclass(frozen=True, slots=True)
class Holding:
    """How one model is stored: in which types, and by how many ranks.

    Attributes:
        dtype: type of activations and of the computation.
        weight_dtype: type of weights that are not quantised.
    """

    shape: Shape
    dtype: str
    weight_dtype: str
    quantization: Quantization | None
    kv_dtype: str
    ranks: int

    def weight_bytes(self, *roles: str) -> float:
        """Bytes of one rank's weights with these roles (or with any)."""
        return sum(self._tensor_bytes(t) for t in self.shape.tensors if not roles or t.role in roles)

    def kv_bytes_per_token(self) -> int:
        """2 (K and V; 1 with latent attention) x layers x key-value heads of a rank x head size x bytes, plus 4 bytes
        per head for the scale of an 8-bit cache: of a token that is in every layer's window. Encoders keep none."""
        if self.shape.encoder:
            return 0
        heads = math.ceil(self.shape.num_kv_heads / self.ranks)
        head = self.shape.head_dim * DTYPE_BYTES[self.kv_dtype] + 4 * (self.kv_dtype in ("int8", "fp8"))
        return self.shape.kv_parts * self.shape.kv_layers * heads * head

    def state_bytes(self) -> int:
        """What recurrent layers carry of one sequence."""
        return self.shape.recurrent_layers * sum(part.num_bytes(DTYPE_BYTES[self.dtype]) for part in self.shape.state)

    def activation_bytes(self, tokens: int, sequences: int, positions: int) -> int:
        """Bytes of working memory of a rank for a step of this size, rotary tables included.

        Counted are the residual and its norm (2 D per token), the largest set of a layer's tensors that exist at once
        (q, k, v and attention's output, or the MLP's), and the logits of the sampled rows, in the model's type and in
        float32.
        """
        shape = self.shape
        size = DTYPE_BYTES[self.dtype]
        attention = (2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        widest = math.ceil(max(attention, shape.mlp_values) / self.ranks) + shape.hidden_size
        logits = min(sequences, tokens) * shape.vocab_size * (size + 4) if shape.generates else 0
        return tokens * (2 * shape.hidden_size + widest) * size + logits + positions * shape.position_bytes

    def _tensor_bytes(self, tensor: Tensors) -> float:
        rows, columns = self._part(tensor)
        if tensor.role == "norm":
            return rows * columns * tensor.copies * _NORM_BYTES
        if self.quantization is not None and tensor.role in self.quantization.roles:
            return tensor.copies * self.quantization.matrix_bytes(rows, columns)
        return rows * columns * tensor.copies * DTYPE_BYTES[self.weight_dtype]

    def _part(self, tensor: Tensors) -> tuple[int, int]:
        """Rows and columns of a tensor on one rank."""
        rows, columns, ranks = tensor.rows, tensor.columns, self.ranks
        match tensor.cut:
            case "rows":
                return math.ceil(rows / ranks), columns
            case "columns":
                return rows, math.ceil(columns / ranks)
            case "kv":
                return math.ceil(rows / min(ranks, self.shape.num_kv_heads)), columns
            case "whole":
                return rows, columns
