"""`BlockWeight`: GGUF's blocks on any device, as planes of codes with the file's scales.

    weight[n, k] = scale (code - zero_code) + minimum

For Q4_0 to Q8_0 scale and minimum are float16, one for 32 columns. The K formats store them as small integers, one for
16 or 32 columns, times a float16 for 256. Nothing is rounded: GGUF's own numbers are stored in another order. 6-bit
scales take a byte (Q4_K: 4.63 bits a weight instead of 4.5).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo_kernels.linear.formats import GROUPED, Array, integer_scales
from octavo_kernels.linear.pack import CHUNK_VALUES, PARTS


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A matrix [n, k].

    Attributes:
        zero_code: code of weight zero in formats without minima.
        low_bits: bits of a code's low part: 2, 4 or 8. A byte of `low` holds the low parts of 4, 2 or 1 columns, lowest
            bits first.
        low: [n, k low_bits / 8] uint8.
        scale: [n, groups] float16, or integers that `unit_scale` multiplies.
        minimum: [n, groups] float16, added; or integers that `unit_minimum` multiplies, subtracted.
        unit_scale, unit_minimum: [n, units] float16.
        high_bits: bits of the rest of a code: 0, 1 or 2.
        high: [n, k high_bits / 8] uint8, likewise.
    """

    zero_code: int
    low_bits: int
    low: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    unit_scale: Tensor | None = None
    unit_minimum: Tensor | None = None
    high_bits: int = 0
    high: Tensor | None = None

    @classmethod
    def from_blocks(cls, blocks: Array, gguf_type: str) -> BlockWeight:
        """Build from rows as they are stored in a file.

        Args:
            blocks: [n, bytes of a row] uint8.
            gguf_type: GGUF's name of the format, one of `formats.GROUPED`.
        """
        form = GROUPED[gguf_type]
        step = max(1, CHUNK_VALUES * form.block_bytes // (blocks.shape[1] * form.unit))
        pieces = [blocks[start : start + step] for start in range(0, len(blocks), step)]
        with ThreadPoolExecutor(min(8, torch.get_num_threads())) as pool:  # numpy lets other threads run
            return joined_rows(list(pool.map(partial(_from_blocks, gguf_type), pieces)))

    @property
    def shape(self) -> tuple[int, int]:
        """n, k."""
        n, bytes_ = self.low.shape
        return n, bytes_ * 8 // self.low_bits

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, by its name here."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Of everything stored."""
        return sum(x.nbytes for x in self.tensors.values())

    def to(self, device: torch.device) -> BlockWeight:
        """On another device."""
        return self._each(lambda x: x.to(device))

    def take_rows(self, index: Tensor) -> BlockWeight:
        """Rows `index` [n] int64, on its device."""
        return self._each(lambda x: x[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> BlockWeight:
        changed: dict[str, Any] = {name: change(x) for name, x in self.tensors.items()}
        return replace(self, **changed)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, k], computed in float32, bit for bit as GGUF defines the format."""
        codes = _unplane(self.low, self.low_bits)
        if self.high is not None:
            codes |= _unplane(self.high, self.high_bits) << self.low_bits
        scale = _times(self.scale, self.unit_scale).unsqueeze(-1)
        values = (codes.view(*self.scale.shape, -1).float() - self.zero_code) * scale
        if self.minimum is not None:
            minimum = _times(self.minimum, self.unit_minimum).unsqueeze(-1)
            values = values + minimum if self.unit_minimum is None else values - minimum
        return values.view(self.shape).to(dtype)


def joined_rows(parts: list[BlockWeight]) -> BlockWeight:
    """Stack matrices of one format by rows."""
    tensors: dict[str, Any] = {name: torch.cat([x.tensors[name] for x in parts]) for name in parts[0].tensors}
    return replace(parts[0], **tensors)


def _from_blocks(gguf_type: str, blocks: Array) -> BlockWeight:
    form = GROUPED[gguf_type]
    codes, stored = form.split(blocks.reshape(len(blocks), -1, form.block_bytes))
    codes = form.codes(codes.reshape(len(blocks), -1))
    (_, low_bits), *rest = PARTS[5 if form.values else form.bits]
    scales: list[Any] = _scales(gguf_type, stored)
    weight = BlockWeight(form.zero, low_bits, _plane(codes, 0, low_bits), *scales)
    return replace(weight, high_bits=rest[0][1], high=_plane(codes, *rest[0])) if rest else weight


def _scales(gguf_type: str, stored: list[Array]) -> list[Tensor | None]:
    """The scales and minima of a row, then those of units."""
    form = GROUPED[gguf_type]
    factors = _float16(form.scales(stored)[0]) if form.values else stored[0].view(np.float16)
    unit = [_row(factors[..., i]) if i < factors.shape[-1] else None for i in range(2)]
    integers = integer_scales(gguf_type, stored)
    return unit if integers is None else [*(None if x is None else _row(x) for x in integers), *unit]


def _float16(powers: Array) -> Array:
    """Powers of two, which are float16 from 2^-24 to 2^15.

    Raises:
        ValueError: they are not.
    """
    with np.errstate(over="ignore", under="ignore"):
        halves = powers.astype(np.float16)
    if (halves.astype(np.float32) != powers).any():
        raise ValueError("scales of MXFP4 blocks are no float16")
    return halves


def _row(x: Array) -> Tensor:
    """[rows, units, ...] -> [rows, all]."""
    return torch.from_numpy(np.ascontiguousarray(x.reshape(len(x), -1)))


def _plane(codes: Array, low: int, width: int) -> Tensor:
    """Bits [low, low + width) of codes [n, k] in bytes, of the first columns lowest."""
    if width == 8:
        return torch.from_numpy(codes)
    parts = ((codes >> np.uint8(low)) & np.uint8((1 << width) - 1)).reshape(len(codes), -1, 8 // width)
    plane = parts[..., 0].copy()
    for i in range(1, 8 // width):
        plane |= parts[..., i] << np.uint8(i * width)
    return torch.from_numpy(plane)


def _unplane(plane: Tensor, width: int) -> Tensor:
    """The inverse: [n, k] uint8."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=plane.device)
    return ((plane.unsqueeze(-1) >> shifts) & ((1 << width) - 1)).flatten(1)


def _times(x: Tensor, unit: Tensor | None) -> Tensor:
    if unit is None:
        return x.float()
    return x.float() * unit.float().repeat_interleave(x.shape[1] // unit.shape[1], dim=1)
