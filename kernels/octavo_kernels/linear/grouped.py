"""`GroupedWeight`: integer codes with a scale per group of columns, on any device; and `Float8Weight`.

GPTQ, AWQ and compressed-tensors files are converted to it, and weights are quantised to it on load:

    weight[n, k] = scale[n, k // group] (code[n, k] - zero[n, k // group])

The CPU's kernels use groups of 32, with repeated scales (`PackedWeight.from_grouped`). Scales are stored as float16:
GPTQ's and AWQ's are unchanged, others are rounded by at most 1 part in 2048.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

FLOAT8_MAX = 448.0
"""Of e4m3 without infinities."""


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A matrix [n, k].

    Attributes:
        bits: 4 or 8.
        codes: [n, k] uint8, or for 4 bits [n, k / 2]: the code of column 2 j in the low half of byte j.
        scale: [n, groups] of a float type.
        zero: [n, groups] uint8; None means 2^(bits - 1) everywhere.
        order: [k] int64: for each stored column, its column in the matrix (GPTQ's act-order groups columns by
            importance); None if they are the same.
    """

    bits: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def from_codes(
        cls, codes: Tensor, bits: int, scale: Tensor, zero: Tensor | None = None, order: Tensor | None = None
    ) -> GroupedWeight:
        """Build from codes [n, k], one per byte.

        Raises:
            ValueError: shapes do not fit each other.
        """
        (n, k), groups = codes.shape, scale.shape[-1]
        if bits not in (4, 8) or scale.shape != (n, groups) or k % groups or (bits == 4 and k % 2):
            raise ValueError(f"{bits}-bit codes {list(codes.shape)} do not fit scales {list(scale.shape)}")
        if zero is not None and zero.shape != scale.shape:
            raise ValueError(f"zero points {list(zero.shape)} do not fit scales {list(scale.shape)}")
        packed = codes[:, ::2] | codes[:, 1::2] << 4 if bits == 4 else codes
        return cls(bits, packed.contiguous(), scale.contiguous(), None if zero is None else zero.contiguous(), order)

    @property
    def shape(self) -> tuple[int, int]:
        """n, k."""
        n, bytes_ = self.codes.shape
        return n, bytes_ * 8 // self.bits

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, by its name here."""
        stored = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "order": self.order}
        return {name: x for name, x in stored.items() if x is not None}

    @property
    def nbytes(self) -> int:
        """Of everything stored."""
        return sum(x.nbytes for x in self.tensors.values())

    def to(self, device: torch.device) -> GroupedWeight:
        """On another device."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in self.tensors.items()}
        return replace(self, **moved)

    def unpacked(self) -> Tensor:
        """Codes [n, k] uint8, columns as stored."""
        if self.bits == 8:
            return self.codes
        return torch.stack([self.codes & 15, self.codes >> 4], dim=-1).view(self.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, k], computed in float32, columns in the matrix's order."""
        zero = 2.0 ** (self.bits - 1) if self.zero is None else self.zero.float().unsqueeze(-1)
        groups = self.unpacked().view(*self.scale.shape, -1).float()
        values = groups.sub_(zero).mul_(self.scale.float().unsqueeze(-1)).view(self.shape).to(dtype)
        return values if self.order is None else values[:, self.order.argsort()]


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """A matrix [n, k] = scale codes.

    Attributes:
        codes: [n, k] float8_e4m3fn.
        scale: [n, 1] float32.
    """

    codes: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """n, k."""
        n, k = self.codes.shape
        return n, k

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, by its name here."""
        return {"codes": self.codes, "scale": self.scale}

    @property
    def nbytes(self) -> int:
        """Of everything stored."""
        return self.codes.nbytes + self.scale.nbytes

    def to(self, device: torch.device) -> Float8Weight:
        """On another device."""
        return Float8Weight(self.codes.to(device), self.scale.to(device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, k], computed in float32."""
        return self.codes.float().mul_(self.scale).to(dtype)


def quantize_grouped(weight: Tensor, bits: int, group: int, *, symmetric: bool) -> GroupedWeight:
    """Round to nearest, group by group.

    Args:
        weight: [n, k] of a float type, k a multiple of `group`.
        symmetric: one scale for both signs, with the largest magnitude at the largest code; otherwise the codes span
            each group's values and zero, with a zero point.
    """
    groups = weight.float().view(len(weight), -1, group)
    top = 2**bits - 1
    if symmetric:
        scale = (groups.abs().amax(-1) / (top // 2)).half()
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = ((high - low) / top).half()
        zero = (-low / _divisor(scale)).round_().clamp_(0, top)
    codes = (groups / _divisor(scale).unsqueeze(-1)).add_(zero.unsqueeze(-1)).round_().clamp_(0, top)
    stored = None if symmetric else zero.to(torch.uint8)
    return GroupedWeight.from_codes(codes.to(torch.uint8).view(weight.shape), bits, scale, stored)


def quantize_float8(weight: Tensor) -> Float8Weight:
    """Quantise to e4m3 with one scale per output, which maps the largest magnitude to the largest code."""
    wide = weight.float()
    scale = (wide.abs().amax(-1, keepdim=True) / FLOAT8_MAX).clamp_(min=1e-30)
    return Float8Weight((wide / scale).to(torch.float8_e4m3fn), scale)


def _divisor(scale: Tensor) -> Tensor:
    """In float32, and 1 for a group of zeros."""
    return scale.float().masked_fill_(scale == 0, 1.0)
