"""Rotary embedding in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def rotary_(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    _rotate_(q, cos, sin)
    _rotate_(k, cos, sin)


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    a, b = first.float(), second.float()
    rotated = a * cos - b * sin
    second.copy_(b * cos + a * sin)
    first.copy_(rotated)
