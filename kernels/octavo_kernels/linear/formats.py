"""The weight formats: splits GGUF's blocks into codes and scales.

Block layouts are those of ggml (`ggml-common.h`, and `gguf/quants.py`, with which the tests compare).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LANES = 16
"""Rows that the packed layout interleaves."""
GROUP = 32
"""Columns of a group, which share an activation's scale."""


class Precision(IntEnum):
    """What a product does with its input (`linear/cpu.h`).

    Attributes:
        FAST: rounds it to 8 bits in groups of 32 for weights of integer codes, to bfloat16 for bfloat16 weights;
            float32 and float16 weights are multiplied as in `EXACT`.
        EXACT: computes in float32 as if the weights were dequantised.
        TWICE: as `FAST`, and rounds what that leaves in the same way: 15 bits of a group's largest value, 17 of a
            value for bfloat16 weights.
    """

    FAST = 0
    EXACT = 1
    TWICE = 2


@dataclass(frozen=True, slots=True)
class Grouped:
    """How a format of integer codes is stored: weight = scale (code - zero) + min.

    Attributes:
        unit: columns of one block; K is a multiple of it.
        block_bytes: bytes of a block in GGUF.
        bits: bits of a code.
        zero: the code of weight zero in formats without minima.
        stored: type and number per block of each array that `split` returns beside the codes.
        split: blocks [rows, units, block_bytes] -> codes [rows, units, unit] and the stored arrays, without rounding.
        scales: stored arrays -> scales and minima [rows, units, n], float32; each is for unit / n columns.
        values: what a stored code stands for, where that is not the code itself.
    """

    unit: int
    block_bytes: int
    bits: int
    zero: int
    stored: tuple[tuple[type[np.generic], int], ...]
    split: Callable[[Array], tuple[Array, list[Array]]]
    scales: Callable[[list[Array]], tuple[Array, Array | None]]
    values: tuple[int, ...] = ()

    def codes(self, stored: Array) -> Array:
        """What stored codes stand for, uint8."""
        return np.array(self.values, np.uint8)[stored] if self.values else stored

    @property
    def packed_bytes(self) -> int:
        """Bytes of sixteen rows of one block in the packed layout."""
        return LANES * (self.unit * self.bits // 8 + sum(np.dtype(kind).itemsize * n for kind, n in self.stored))


def _cut(blocks: Array, *sizes: int) -> list[Array]:
    """Split the last dimension into pieces of these sizes, in bytes."""
    return np.split(blocks, np.cumsum(sizes[:-1]), axis=-1)


def _halves(x: Array) -> Array:
    """Bytes reinterpreted as float16."""
    return np.ascontiguousarray(x).view(np.uint16)


def _float(x: Array) -> Array:
    return x.view(np.float16).astype(np.float32)


def _bits(x: Array, row: int, width: int) -> Array:
    """Unpack bytes that hold several codes: first the lowest bits of `row` bytes, then the next bits of the same bytes,
    ..."""
    rows = x.reshape(*x.shape[:-1], -1, 1, row)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return ((rows >> shifts) & np.uint8((1 << width) - 1)).reshape(*x.shape[:-1], -1)


def _flat_bits(x: Array) -> Array:
    """Bytes as single bits, lowest first."""
    return np.unpackbits(x, axis=-1, bitorder="little")


def _split_q4_0(blocks: Array) -> tuple[Array, list[Array]]:
    d, q = _cut(blocks, 2, 16)
    return _bits(q, 16, 4), [_halves(d)]


def _split_q4_1(blocks: Array) -> tuple[Array, list[Array]]:
    dm, q = _cut(blocks, 4, 16)
    return _bits(q, 16, 4), [_halves(dm)]


def _split_q5_0(blocks: Array) -> tuple[Array, list[Array]]:
    d, high, q = _cut(blocks, 2, 4, 16)
    return _bits(q, 16, 4) | _flat_bits(high) << np.uint8(4), [_halves(d)]


def _split_q5_1(blocks: Array) -> tuple[Array, list[Array]]:
    dm, high, q = _cut(blocks, 4, 4, 16)
    return _bits(q, 16, 4) | _flat_bits(high) << np.uint8(4), [_halves(dm)]


def _split_q8_0(blocks: Array) -> tuple[Array, list[Array]]:
    d, q = _cut(blocks, 2, 32)
    return q ^ np.uint8(128), [_halves(d)]


def _split_z4(blocks: Array) -> tuple[Array, list[Array]]:
    d, zero, q = _cut(blocks, 2, 1, 16)
    return _bits(q, 16, 4), [_halves(d), zero]


def _split_z8(blocks: Array) -> tuple[Array, list[Array]]:
    d, zero, q = _cut(blocks, 2, 1, 32)
    return q, [_halves(d), zero]


def _split_mxfp4(blocks: Array) -> tuple[Array, list[Array]]:
    exponent, q = _cut(blocks, 1, 16)
    return _bits(q, 16, 4), [exponent]


def _split_q2_k(blocks: Array) -> tuple[Array, list[Array]]:
    scales, q, dm = _cut(blocks, 16, 64, 4)
    return _bits(q, 32, 2), [_halves(dm), scales]


def _split_q3_k(blocks: Array) -> tuple[Array, list[Array]]:
    high, q, scales, d = _cut(blocks, 32, 64, 12, 2)
    low_scales, high_scales = _cut(scales, 8, 4)
    scale = _bits(low_scales, 8, 4) | _bits(high_scales, 4, 2) << np.uint8(4)
    return _bits(q, 32, 2) | _bits(high, 32, 1) << np.uint8(2), [_halves(d), scale - np.uint8(32)]


def _split_q4_k(blocks: Array) -> tuple[Array, list[Array]]:
    dm, scales, q = _cut(blocks, 4, 12, 128)
    return _bits(q, 32, 4), [_halves(dm), _paired_scales(scales)]


def _split_q5_k(blocks: Array) -> tuple[Array, list[Array]]:
    dm, scales, high, q = _cut(blocks, 4, 12, 32, 128)
    return _bits(q, 32, 4) | _bits(high, 32, 1) << np.uint8(4), [_halves(dm), _paired_scales(scales)]


def _split_q6_k(blocks: Array) -> tuple[Array, list[Array]]:
    low, high, scales, d = _cut(blocks, 128, 64, 16, 2)
    return _bits(low, 64, 4) | _bits(high, 32, 2) << np.uint8(4), [_halves(d), scales]


def _paired_scales(packed: Array) -> Array:
    """Q4_K's twelve bytes (eight 6-bit scales, eight minima) in the order of `formats.h`, three for two groups."""
    a, b, c = _cut(packed, 4, 4, 4)
    scale = np.concatenate([a & 63, c & 15 | (a >> 2) & 48], axis=-1)
    minimum = np.concatenate([b & 63, c >> 4 | (b >> 2) & 48], axis=-1)
    low = scale & 15 | minimum << np.uint8(4)
    high = scale >> 4 | (minimum >> 4) << np.uint8(2)
    pairs = [low[..., ::2], low[..., 1::2], high[..., ::2] | high[..., 1::2] << np.uint8(4)]
    return np.stack(pairs, axis=-1).reshape(packed.shape)


def _unpaired_scales(pairs: Array) -> tuple[Array, Array]:
    """The inverse: eight scales and eight minima."""
    three = pairs.reshape(*pairs.shape[:-1], 4, 3)
    low, high = three[..., :2], np.stack([three[..., 2] & 15, three[..., 2] >> 4], axis=-1)
    scale, minimum = low & 15 | (high & 3) << np.uint8(4), low >> 4 | (high & 12) << np.uint8(2)
    shape = (*pairs.shape[:-1], 8)
    return scale.reshape(shape), minimum.reshape(shape)


def _scale(stored: list[Array]) -> tuple[Array, Array | None]:
    return _float(stored[0]), None


def _scale_min(stored: list[Array]) -> tuple[Array, Array | None]:
    both = _float(stored[0])
    return both[..., :1], both[..., 1:]


def _scale_zero(stored: list[Array]) -> tuple[Array, Array | None]:
    scale = _float(stored[0])
    return scale, -(scale * stored[1])


def _scales_mxfp4(stored: list[Array]) -> tuple[Array, Array | None]:
    return (stored[0].astype(np.uint32) << 23).view(np.float32) * np.float32(0.5), None


def integer_scales(name: str, stored: list[Array]) -> tuple[Array, Array | None] | None:
    """A K format's integer scales and minima, without a unit's factors: [rows, units, n]; None for other formats."""
    match name:
        case "Q2_K":
            return stored[1] & 15, stored[1] >> 4
        case "Q3_K" | "Q6_K":
            return stored[1].view(np.int8), None
        case "Q4_K" | "Q5_K":
            return _unpaired_scales(stored[1])
    return None


def _scaled_scale(stored: list[Array]) -> tuple[Array, Array | None]:
    return _float(stored[0]) * stored[1].view(np.int8), None


def _scaled_scale_min(stored: list[Array], unpack: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
    both, (scale, minimum) = _float(stored[0]), unpack(stored[1])
    return both[..., :1] * scale, -(both[..., 1:] * minimum)


def _scales_q2_k(stored: list[Array]) -> tuple[Array, Array | None]:
    return _scaled_scale_min(stored, lambda x: (x & 15, x >> 4))


def _scales_q4_k(stored: list[Array]) -> tuple[Array, Array | None]:
    return _scaled_scale_min(stored, _unpaired_scales)


_D, _DM = (np.uint16, 1), (np.uint16, 2)
_Z = (_D, (np.uint8, 1))
_K2, _K3, _K4 = (_DM, (np.uint8, 16)), (_D, (np.uint8, 16)), (_DM, (np.uint8, 12))

FLOATS4 = (16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4)
"""Of MXFP4's codes, four-bit floats: twice their values, plus 16."""

GROUPED: dict[str, Grouped] = {
    "Q4_0": Grouped(32, 18, 4, 8, (_D,), _split_q4_0, _scale),
    "Q4_1": Grouped(32, 20, 4, 0, (_DM,), _split_q4_1, _scale_min),
    "Q5_0": Grouped(32, 22, 5, 16, (_D,), _split_q5_0, _scale),
    "Q5_1": Grouped(32, 24, 5, 0, (_DM,), _split_q5_1, _scale_min),
    "Q8_0": Grouped(32, 34, 8, 128, (_D,), _split_q8_0, _scale),
    "Q2_K": Grouped(256, 84, 2, 0, _K2, _split_q2_k, _scales_q2_k),
    "Q3_K": Grouped(256, 110, 3, 4, _K3, _split_q3_k, _scaled_scale),
    "Q4_K": Grouped(256, 144, 4, 0, _K4, _split_q4_k, _scales_q4_k),
    "Q5_K": Grouped(256, 176, 5, 0, _K4, _split_q5_k, _scales_q4_k),
    "Q6_K": Grouped(256, 210, 6, 32, _K3, _split_q6_k, _scaled_scale),
    "Z4": Grouped(32, 19, 4, 0, _Z, _split_z4, _scale_zero),
    "Z8": Grouped(32, 35, 8, 0, _Z, _split_z8, _scale_zero),
    "MXFP4": Grouped(32, 17, 4, 16, ((np.uint8, 1),), _split_mxfp4, _scales_mxfp4, FLOATS4),
}
"""Integer formats by GGUF's names. Z4 and Z8 are our own, for GPTQ, AWQ and similar: a float16 scale, a zero point of
one byte, codes."""

FLOATS: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""Unquantised formats, and numpy's type for each."""

CODES = {name: code for code, name in enumerate([*FLOATS, *GROUPED])}
"""A format's number in the C interface (`WeightFormat` in cpu.h)."""
