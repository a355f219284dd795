"""`PackedAdapter`: a LoRA adapter's matrices as the native decoder reads them (`cpu.h`, `decoder/adapters.h`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from octavo_kernels.linear.formats import CODES, GROUP, LANES
from octavo_kernels.linear.pack import pack_floats, packed_shape
from octavo_kernels.native.memory import untouched

Float32 = npt.NDArray[np.float32]

SITES = (("q", "k", "v"), ("out",), ("gate", "up"), ("down",))
"""Matrices by the input that they share."""

Pair = tuple[Float32, Float32]
"""A [rank, in], and B [out, rank] times the scale."""


class PackedAdapter:
    """A and B of all layers; read-only, so steps may use it while others are loaded.

    They lie one after the other as a step reads them, in huge pages where the system has them: a row alone reads all of
    them, and from places of their own, in small pages, it took three times as long.

    Args:
        layers: each layer's changed matrices.
        exact: keep float32; otherwise they are rounded to bfloat16, as activations are where they meet.

    Attributes:
        num_bytes: of A and B.
    """

    def __init__(self, layers: Sequence[Mapping[str, Pair]], *, exact: bool) -> None:
        self._exact = exact
        self.num_bytes = sum(self._size(layer) for layer in layers)
        self._data = untouched(self.num_bytes)
        self._used = self._widest = 0
        words = [word for layer in layers for word in self._layer(layer)]
        self._words = np.array([self._widest, *words], np.int64)

    @property
    def address(self) -> int:
        """Of `struct Adapter`."""
        return self._words.ctypes.data

    def _size(self, layer: Mapping[str, Pair]) -> int:
        """Bytes of a layer."""
        value, together = (4, 1) if self._exact else (2, 2)
        ranks = [sum(len(layer[part][0]) for part in site if part in layer) for site in SITES]
        columns = [next((layer[part][0].shape[1] for part in site if part in layer), 0) for site in SITES]
        first = sum(_up(rank, LANES) * _up(k, GROUP) for rank, k in zip(ranks, columns, strict=True))
        second = sum(_up(len(b), LANES) * _up(len(a), together) for a, b in layer.values())
        return value * (first + second)

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        """The next bytes."""
        self._used += size
        return self._data[self._used - size : self._used]

    def _layer(self, layer: Mapping[str, Pair]) -> list[int]:
        """The words of `struct AdapterLayer`."""
        first: list[int] = []
        second: list[int] = []
        for site in SITES:
            present = [layer[part][0] for part in site if part in layer]
            first += self._stacked(present) if present else [0] * 5
            offset = 0
            for part in site:
                rank = layer[part][0].shape[0] if part in layer else 0
                second += [rank, offset, len(layer[part][1]), self._columns(layer[part][1])] if rank else [0] * 4
                offset += rank
        return first + second

    def _stacked(self, matrices: list[Float32]) -> list[int]:
        """The words of `struct Matrix`: A's one below the other."""
        rows = np.ascontiguousarray(np.concatenate(matrices), np.float32)
        self._widest = max(self._widest, len(rows))
        name = "F32" if self._exact else "BF16"
        shape = packed_shape(name, *rows.shape)
        data = self._take(math.prod(shape)).reshape(shape)
        pack_floats(rows if self._exact else to_bfloat16(rows), name, data)
        return [CODES[name], *rows.shape, data.ctypes.data, 0]

    def _columns(self, b: Float32) -> int:
        """The address of B in blocks of 16 outputs, column after column or pair after pair."""
        rows, rank = b.shape
        together = 1 if self._exact else 2
        padded = np.zeros((-(-rows // LANES) * LANES, -(-rank // together) * together), np.float32)
        padded[:rows, :rank] = b
        values = padded if self._exact else to_bfloat16(padded)
        blocks = values.reshape(-1, LANES, values.shape[1] // together, together).transpose(0, 2, 1, 3)
        data = self._take(values.nbytes)
        data.view(values.dtype).reshape(blocks.shape)[...] = blocks
        return data.ctypes.data


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def to_bfloat16(x: Float32) -> npt.NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)
