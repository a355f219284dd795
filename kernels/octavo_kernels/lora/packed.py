"""`PackedAdapter`: a LoRA adapter's matrices as the native decoder reads them (`cpu.h`, `decoder/adapters.h`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from octavo_kernels.linear import PackedWeight
from octavo_kernels.linear.formats import CODES, LANES
from octavo_kernels.linear.pack import pack_floats

Float32 = npt.NDArray[np.float32]

SITES = (("q", "k", "v"), ("out",), ("gate", "up"), ("down",))
"""Matrices by the input that they share."""

Pair = tuple[Float32, Float32]
"""A [rank, in], and B [out, rank] times the scale."""


class PackedAdapter:
    """A and B of all layers; read-only, so steps may use it while others are loaded.

    Args:
        layers: each layer's changed matrices.
        exact: keep float32; otherwise they are rounded to bfloat16, as activations are where they meet.

    Attributes:
        num_bytes: of A and B.
    """

    def __init__(self, layers: Sequence[Mapping[str, Pair]], *, exact: bool) -> None:
        self._exact = exact
        self._keep: list[npt.NDArray[np.generic]] = []
        self._widest = 0
        words = [word for layer in layers for word in self._layer(layer)]
        self._words = np.array([self._widest, *words], np.int64)
        self.num_bytes = sum(array.nbytes for array in self._keep)

    @property
    def address(self) -> int:
        """Of `struct Adapter`."""
        return self._words.ctypes.data

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
        packed = PackedWeight.empty("F32" if self._exact else "BF16", *rows.shape)
        pack_floats(rows if self._exact else to_bfloat16(rows), packed.format, packed.data)
        self._keep.append(packed.data)
        return [CODES[packed.format], packed.n, packed.k, packed.data.ctypes.data, 0]

    def _columns(self, b: Float32) -> int:
        """The address of B in blocks of 16 outputs, column after column or pair after pair."""
        rows, rank = b.shape
        together = 1 if self._exact else 2
        padded = np.zeros((-(-rows // LANES) * LANES, -(-rank // together) * together), np.float32)
        padded[:rows, :rank] = b
        values = padded if self._exact else to_bfloat16(padded)
        blocks = values.reshape(-1, LANES, values.shape[1] // together, together).transpose(0, 2, 1, 3)
        self._keep.append(np.ascontiguousarray(blocks))
        return self._keep[-1].ctypes.data


def to_bfloat16(x: Float32) -> npt.NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)
