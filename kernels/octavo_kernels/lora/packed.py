"""`PackedAdapter`: a LoRA adapter's matrices as the native decoder reads them (`cpu.h`, `decoder/adapters.h`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo_kernels.linear.formats import GROUP, LANES, Precision
from octavo_kernels.native.memory import untouched

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SITES = (("q", "k", "v"), ("out",), ("gate", "up"), ("down",))
"""Matrices by the input that they share."""

Pair = tuple[Float32, Float32]
"""A [rank, in], and B [out, rank] times the scale."""


class Kind(IntEnum):
    """What an adapter's matrices are kept in, and what their input is packed as beside them (`LowKind` of cpu.h).

    `FLOAT16` has an input in float32. A and B of a pair are brought to one size by a power of two, which takes nothing
    from their product. `INT8` has codes of 8 bits with a scale for 32 columns: half of bfloat16's bytes, which is what
    a row alone with its adapter waits for. The codes of the input round as much.
    """

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    FLOAT16 = 3


def kind_of(weight: str, precision: Precision) -> Kind:
    """What an adapter's matrices are kept in beside a matrix of a format."""
    if precision is Precision.EXACT or weight in ("F32", "F16"):
        return Kind.FLOAT32
    if precision is Precision.TWICE:
        return Kind.FLOAT16
    return Kind.BFLOAT16 if weight == "BF16" else Kind.INT8


class PackedAdapter:
    """A and B of all layers; read-only, so steps may use it while others are loaded.

    They lie one after the other as a step reads them, in huge pages where the system has them: a row alone reads all of
    them, and from places of their own, in small pages, it took three times as long.

    Args:
        layers: each layer's changed matrices.
        kinds: of each layer's `SITES`.

    Attributes:
        num_bytes: of A and B.
    """

    def __init__(self, layers: Sequence[Mapping[str, Pair]], kinds: Sequence[Sequence[Kind]]) -> None:
        packed = [
            _layer(_balanced(layer) if Kind.FLOAT16 in each else layer, each)
            for layer, each in zip(layers, kinds, strict=True)
        ]
        self.num_bytes = sum(matrix.nbytes for _, matrices in packed for matrix in matrices)
        self._data = untouched(self.num_bytes)
        self._used = 0
        words = [word for records, matrices in packed for word in self._placed(records, matrices)]
        self._words = np.array([max(map(_places, layers), default=0), *words], np.int64)

    @property
    def address(self) -> int:
        """Of `struct Adapter`."""
        return self._words.ctypes.data

    def _placed(self, records: list[_Record], matrices: list[Bytes]) -> list[int]:
        """The words of `struct AdapterLayer`."""
        places = [self._place(matrix) for matrix in matrices]
        return [word for *numbers, index in records for word in (*numbers, 0 if index < 0 else places[index])]

    def _place(self, matrix: Bytes) -> int:
        """Copies it behind those before; its address."""
        place = self._data[self._used : self._used + matrix.nbytes]
        place[...] = matrix.ravel()
        self._used += matrix.nbytes
        return place.ctypes.data


_Record = tuple[int, ...]
"""Words of `struct LowA` or `struct LowB`, but for the last one: which of the layer's matrices it is, or -1."""


def _places(layer: Mapping[str, Pair]) -> int:
    """The most room that the packed products of an input's A's take, in groups of 32."""
    return max(sum(_groups(layer[part][0]) for part in site if part in layer) for site in SITES)


def _groups(a: Float32) -> int:
    return -(-len(a) // GROUP)


def _balanced(layer: Mapping[str, Pair]) -> dict[str, Pair]:
    """A and B of one size each, for float16 has a small range: 2^n A and 2^-n B."""
    balanced = {}
    for part, (a, b) in layer.items():
        largest = [float(np.abs(matrix).max(initial=0)) for matrix in (a, b)]
        usual = all(0 < size < np.inf for size in largest)
        shift = round(np.log2(largest[1] / largest[0]) / 2) if usual else 0
        balanced[part] = np.ldexp(a, shift), np.ldexp(b, -shift)
    return balanced


def _layer(layer: Mapping[str, Pair], kinds: Sequence[Kind]) -> tuple[list[_Record], list[Bytes]]:
    """A layer's records, those of A first, and the matrices, in the order in which a step reads them."""
    first, second, matrices = list[_Record](), list[_Record](), list[Bytes]()
    for kind, site in zip(kinds, SITES, strict=True):
        offset, place, present = 0, 0, [layer[part][0] for part in site if part in layer]
        first.append((kind, *_shape(present), len(matrices)) if present else (0, 0, 0, -1))
        matrices += [_blocks(np.concatenate(present), kind, GROUP)] if present else []
        for part in site:
            if part not in layer:
                second.append((0, 0, 0, 0, -1))
                continue
            a, b = layer[part]
            second.append((len(a), offset, place, len(b), len(matrices)))
            matrices.append(_blocks(b, kind, _TOGETHER[kind]))
            offset, place = offset + len(a), place + _groups(a)
    return first + second, matrices


_TOGETHER = {Kind.FLOAT32: 1, Kind.FLOAT16: 1, Kind.BFLOAT16: 2, Kind.INT8: 4}
"""Columns of B that a step of a dot product takes."""


def _shape(stacked: list[Float32]) -> tuple[int, int]:
    return sum(map(len, stacked)), stacked[0].shape[1]


def _blocks(matrix: Float32, kind: Kind, multiple: int) -> Bytes:
    """[blocks of sixteen rows, bytes]: columns, filled up to a `multiple`, side by side."""
    rows, columns = matrix.shape
    padded = np.zeros((_up(rows, LANES), _up(columns, multiple)), np.float32)
    padded[:rows, :columns] = matrix
    if kind == Kind.INT8:
        return _codes(padded)
    words: npt.NDArray[Any] = padded
    if kind == Kind.FLOAT16:
        with np.errstate(over="ignore"):  # it would say nothing sensible anyway
            words = padded.astype(np.float16)
    elif kind == Kind.BFLOAT16:
        words = to_bfloat16(padded).view(np.uint32)
    side_by_side = words.reshape(-1, LANES, words.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(side_by_side).view(np.uint8).reshape(len(side_by_side), -1)


def _codes(matrix: Float32) -> Bytes:
    """[blocks, bytes]: for each 32 columns, or those that are left, sixteen scales and steps of four codes."""
    rows, columns = matrix.shape
    padded = np.zeros((rows, _up(columns, GROUP)), np.float32)
    padded[:, :columns] = matrix
    groups = padded.reshape(rows, -1, GROUP)
    scales, codes = _rounded(groups)
    out = np.empty((rows // LANES, groups.shape[1], LANES * (2 + GROUP)), np.uint8)
    by_block = scales.reshape(-1, LANES, groups.shape[1]).transpose(0, 2, 1)
    out[..., : 2 * LANES] = np.ascontiguousarray(by_block).view(np.uint8)
    steps = codes.view(np.uint32).reshape(-1, LANES, groups.shape[1], GROUP // 4).transpose(0, 2, 3, 1)
    out[..., 2 * LANES :] = np.ascontiguousarray(steps).view(np.uint8).reshape(*out.shape[:2], -1)
    return out.reshape(len(out), -1)[:, : LANES * (2 * groups.shape[1] + columns)]


def _rounded(groups: Float32) -> tuple[npt.NDArray[np.uint16], Bytes]:
    """Scales in bfloat16, rounded up so that codes fit, and codes with 128 added.

    What is not finite makes its scale so.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        bits = (np.abs(groups).max(-1) / np.float32(127)).view(np.uint32) + np.uint32(0xFFFF) >> np.uint32(16)
        scale = (bits << np.uint32(16)).view(np.float32)[..., None]
        codes = np.where(scale > 0, np.rint(groups / scale), 0).astype(np.int8)
    return bits.astype(np.uint16), codes.view(np.uint8) ^ np.uint8(128)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def to_bfloat16(x: Float32) -> npt.NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)
