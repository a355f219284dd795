"""Rotary embedding in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    _rotate_(q, cos, sin)
    _rotate_(k, cos, sin)


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    a, b = first.float(), second.float()  # views of x when it is float32: write only after both results exist
    new_a = torch.addcmul(a * cos, b, sin, value=-1)
    new_b = torch.addcmul(b * cos, a, sin)
    first.copy_(new_a)
    second.copy_(new_b)
