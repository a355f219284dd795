"""Linear layers whose weights stay in the checkpoint's format: float32, float16, bf16, or GGUF's blocks of integer
codes.

On the CPU a weight is packed once, without loss, into a layout that the kernels read in order (`formats.h`). There are
three kinds of product (`Precision`). The exact one converts weights to float32 in registers and sums in float32. The
fast one multiplies integer codes by activations that are quantised to 8 bits in groups of 32, or bf16 weights by
activations rounded to bf16. The third does that twice, the second time with what rounding left. In all, a row's result
is bitwise independent of the rest of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from octavo_kernels.linear.formats import CODES, FLOATS, GROUP, GROUPED, Array, Precision
from octavo_kernels.linear.pack import pack_blocks, pack_floats, packed_shape
from octavo_kernels.native import library

if TYPE_CHECKING:
    from torch import Tensor

    from octavo_kernels.linear.grouped import GroupedWeight

FORMATS = tuple(CODES)
"""Formats of a `PackedWeight`, by GGUF's names (Z4 and Z8 are our own)."""

_NAMES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix [n, k] in the packed layout.

    Attributes:
        format: one of `FORMATS`.
        n, k: outputs and inputs.
        data: uint8 of the packed shape; may be a read-only view of a mapped file (64 bytes aligned for speed).
    """

    format: str
    n: int
    k: int
    data: Array

    @classmethod
    def from_tensor(cls, weight: Tensor) -> PackedWeight:
        """Pack [N, K] float32, float16 or bfloat16.

        Raises:
            ValueError: not a matrix, or of another type.
        """
        import torch

        if weight.ndim != 2 or str(weight.dtype) not in _NAMES:
            raise ValueError(
                f"weight must be [N, K] float32, float16 or bfloat16, got {tuple(weight.shape)} {weight.dtype}"
            )
        packed = cls.empty(_NAMES[str(weight.dtype)], *weight.shape)
        bits = weight.view(torch.int16) if weight.dtype == torch.bfloat16 else weight
        values = bits.contiguous().numpy().view(FLOATS[packed.format])
        pack_floats(values, packed.format, packed.data)
        return packed

    @classmethod
    def from_blocks(cls, blocks: Array, gguf_type: str) -> PackedWeight:
        """Pack GGUF's blocks as they lie in the file.

        Args:
            blocks: [N, bytes of a row] uint8; rows may have been reordered, or joined with others of the same format,
                before.
            gguf_type: GGUF's name of the format, for example "Q4_K".

        Raises:
            ValueError: the format is not supported, or rows are not a whole number of blocks.
        """
        if gguf_type not in GROUPED:
            raise ValueError(f"GGUF's {gguf_type} is not one of the packed formats {', '.join(GROUPED)}")
        form = GROUPED[gguf_type]
        if blocks.ndim != 2 or blocks.dtype != np.uint8 or blocks.shape[1] % form.block_bytes:
            raise ValueError(
                f"{gguf_type} rows must be uint8, blocks of {form.block_bytes} bytes, got {blocks.shape} {blocks.dtype}"
            )
        packed = cls.empty(gguf_type, len(blocks), blocks.shape[1] // form.block_bytes * form.unit)
        pack_blocks(blocks, gguf_type, packed.data)
        return packed

    @classmethod
    def from_grouped(cls, weight: GroupedWeight) -> PackedWeight:
        """Pack codes with scales of 32, 64, ... columns: as Q4_0 or Q8_0, or with zero points as Z4 or Z8.

        Raises:
            ValueError: a group is not a multiple of 32 columns, or columns are reordered.
        """
        (n, k), groups = weight.shape, weight.scale.shape[1]
        if k // groups % GROUP or weight.order is not None:
            raise ValueError(f"groups of {k // groups} columns cannot be packed: they must be 32 n, in order")
        codes = weight.unpacked().view(n, -1, GROUP).cpu().numpy()
        repeats = codes.shape[1] // groups
        parts = [weight.scale.half().cpu().numpy()[..., None].repeat(repeats, 1).view(np.uint8)]
        if weight.zero is not None:
            parts.append(weight.zero.cpu().numpy()[..., None].repeat(repeats, 1))
        elif weight.bits == 8:
            codes = codes ^ np.uint8(128)
        parts.append(codes[..., :16] | codes[..., 16:] << np.uint8(4) if weight.bits == 4 else codes)
        names = {(4, True): "Q4_0", (8, True): "Q8_0", (4, False): "Z4", (8, False): "Z8"}
        return cls.from_blocks(np.concatenate(parts, -1).reshape(n, -1), names[weight.bits, weight.zero is None])

    @classmethod
    def empty(cls, name: str, n: int, k: int) -> PackedWeight:
        """Allocate a matrix in one of `FORMATS`, not yet filled."""
        return cls(name, n, k, np.empty(packed_shape(name, n, k), np.uint8))

    def rows(self, index: Tensor) -> Tensor:
        """Rows `index` (int64) in float32, [len(index), k], without rounding: a look-up of embeddings."""
        import torch

        from octavo_kernels.linear import reference

        if library.use_cpu():
            out = torch.empty(len(index), self.k)
            library.call("linear_read_rows", *self._arguments(), index.contiguous(), len(index), out)
            return out
        return reference.dequantize(self.data, self.format, self.n, self.k)[index]

    def _arguments(self) -> tuple[int, int, int, Array]:
        return CODES[self.format], self.n, self.k, self.data


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, precision: Precision = Precision.FAST
) -> Tensor:
    """`x W^T + bias`.

    Args:
        x: [R, K] float32, bfloat16 or float16 on the CPU, rows contiguous.
        weight: [N, K].
        bias: [N] float32.
        precision: what becomes of `x`.

    Returns:
        [R, N] of `x`'s type.

    Raises:
        ValueError: shapes or types do not fit.
    """
    import torch

    _check(x, weight, bias)
    if not library.use_cpu(x):
        return _reference(x, weight, bias, precision).to(x.dtype)
    out = torch.empty(len(x), weight.n)
    is_bf16 = x.dtype == torch.bfloat16
    library.call("linear", *weight._arguments(), x, x.stride(0), is_bf16, len(x), precision, bias, out)
    return out.to(x.dtype)


def _reference(x: Tensor, weight: PackedWeight, bias: Tensor | None, precision: Precision) -> Tensor:
    from octavo_kernels.linear import reference

    if precision is Precision.EXACT or weight.format in ("F32", "F16"):
        wide = reference.dequantize(weight.data, weight.format, weight.n, weight.k)
        return reference.linear_exact(x, wide, bias)
    first = _reference_fast(x, weight, bias)
    if precision is Precision.FAST:
        return first
    rounded = reference.rounded_bf16(x) if weight.format == "BF16" else reference.rounded_int8(x)
    return _reference_fast(x.float() - rounded, weight, None) + first


def _reference_fast(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    from octavo_kernels.linear import reference

    if weight.format in GROUPED:
        return reference.linear_int8(x, weight.data, weight.format, weight.n, bias)
    return reference.linear_bf16(x, reference.dequantize(weight.data, weight.format, weight.n, weight.k), bias)


def _check(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> None:
    if str(x.dtype) not in _NAMES or x.device.type != "cpu":
        raise ValueError(f"x must be float32, bfloat16 or float16 on the CPU, got {x.dtype} on {x.device}")
    if x.ndim != 2 or x.shape[1] != weight.k or x.stride(1) != 1:
        raise ValueError(f"x must be [R, {weight.k}] with contiguous rows, got {tuple(x.shape)} strides {x.stride()}")
    if bias is not None and (bias.shape != (weight.n,) or str(bias.dtype) != "torch.float32"):
        raise ValueError(f"bias must be [{weight.n}] float32, got {tuple(bias.shape)} {bias.dtype}")
