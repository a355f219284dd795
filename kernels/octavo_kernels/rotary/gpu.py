"""Rotary embedding in Triton: one program per token, its heads as one tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(x_ptr, stride_head, cos, sin, column, half, num_heads, HEADS: tl.constexpr):
    head = tl.arange(0, HEADS)
    first = x_ptr + head[:, None] * stride_head + column[None, :]
    mask = (head < num_heads)[:, None] & (column < half)[None, :]
    a = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(first + half, mask=mask, other=0.0).to(tl.float32)
    tl.store(first, a * cos[None, :] - b * sin[None, :], mask=mask)
    tl.store(first + half, b * cos[None, :] + a * sin[None, :], mask=mask)


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    positions_ptr,
    cos_sin_ptr,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    stride_position,
    half,
    q_heads,
    k_heads,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    angles = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * stride_position
    column = tl.arange(0, HALF)
    cos = tl.load(angles + column, mask=column < half, other=0.0)
    sin = tl.load(angles + half + column, mask=column < half, other=0.0)
    _rotate(q_ptr + token * q_stride_token, q_stride_head, cos, sin, column, half, q_heads, Q_HEADS)
    _rotate(k_ptr + token * k_stride_token, k_stride_head, cos, sin, column, half, k_heads, K_HEADS)


def rotary_(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    half = cos_sin.shape[1] // 2
    _rotary_kernel[(len(q),)](
        q,
        k,
        positions,
        cos_sin,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        cos_sin.stride(0),
        half,
        q.shape[1],
        k.shape[1],
        Q_HEADS=triton.next_power_of_2(q.shape[1]),
        K_HEADS=triton.next_power_of_2(k.shape[1]),
        HALF=triton.next_power_of_2(half),
    )
