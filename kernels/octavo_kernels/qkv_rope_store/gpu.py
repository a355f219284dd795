"""QKV split, norm, rotation and KV store in Triton: one program per token and a few heads of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.kv_cache import KVScales
from octavo_kernels.kv_store.gpu import heads_per_program, store_heads, writable

if TYPE_CHECKING:
    from octavo_kernels.qkv_rope_store import HeadNorms


@triton.jit
def _weigh(x, scale, like_ptr, is_q, q_norm_ptr, k_norm_ptr, column, inside):
    """x [H, D] normalised, and rounded to the type of `like_ptr` as `rms_norm` rounds its result."""
    q_weight = tl.load(q_norm_ptr + column, mask=inside, other=0.0)
    k_weight = tl.load(k_norm_ptr + column, mask=inside, other=0.0)
    weights = tl.where(is_q[:, None], q_weight[None, :], k_weight[None, :])
    return (x * scale[:, None] * weights).to(like_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def _qkv_rope_store_kernel(
    qkv_ptr,
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scales_ptr,  # or None
    v_scales_ptr,
    slots_ptr,
    positions_ptr,
    cos_sin_ptr,  # or None
    q_norm_ptr,  # or None
    k_norm_ptr,
    half,  # of the rotated part of a head
    stride_position,
    eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,  # heads per program
    BLOCK: tl.constexpr,  # DIM as a power of two
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    is_q, is_key_or_q = head < Q_HEADS, head < Q_HEADS + KV_HEADS
    is_head = head < Q_HEADS + 2 * KV_HEADS
    row_ptr = qkv_ptr + (token * (Q_HEADS + 2 * KV_HEADS) + head)[:, None] * DIM
    loaded = tl.load(row_ptr + column[None, :], mask=is_head[:, None] & inside[None, :], other=0.0)
    x = loaded.to(tl.float32)
    if q_norm_ptr is not None:
        scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / DIM + eps)
        x = _weigh(x, scale, qkv_ptr, is_q, q_norm_ptr, k_norm_ptr, column, inside)
    if cos_sin_ptr is not None:
        # Each value's partner is loaded again, from the cache, rather than moved between threads.
        first = column < half
        turns = column < 2 * half
        partner = tl.where(first, column + half, column - half)
        y = tl.load(row_ptr + partner[None, :], mask=is_key_or_q[:, None] & turns[None, :], other=0.0).to(tl.float32)
        if q_norm_ptr is not None:
            y = _weigh(y, scale, qkv_ptr, is_q, q_norm_ptr, k_norm_ptr, partner, turns)
        angles_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * stride_position
        pair = tl.where(first, column, column - half)
        cos = tl.load(angles_ptr + pair, mask=turns, other=1.0)
        sin = tl.load(angles_ptr + half + pair, mask=turns, other=0.0)
        x = x * cos[None, :] + y * tl.where(first, -sin, sin)[None, :]
    result = tl.where(is_key_or_q[:, None], x, loaded.to(tl.float32)).to(qkv_ptr.dtype.element_ty)
    q_place = (token * Q_HEADS + head)[:, None] * DIM + column[None, :]
    tl.store(q_ptr + q_place, result, mask=is_q[:, None] & inside[None, :])
    slot = tl.load(slots_ptr + token) * KV_HEADS
    k_head, v_head = head - Q_HEADS, head - Q_HEADS - KV_HEADS
    store_heads(result, k_cache_ptr, k_scales_ptr, slot + k_head, is_key_or_q & (k_head >= 0), column, DIM)
    store_heads(result, v_cache_ptr, v_scales_ptr, slot + v_head, is_head & (v_head >= 0), column, DIM)


def qkv_rope_store(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    norms: HeadNorms | None,
    kv_scales: KVScales | None,
) -> Tensor:
    kv_heads, dim = k_cache.shape[2:]
    all_heads = qkv.shape[1] // dim
    heads = all_heads - 2 * kv_heads
    q = torch.empty((len(qkv), heads, dim), dtype=qkv.dtype, device=qkv.device)
    half, stride = (cos_sin.shape[1] // 2, cos_sin.stride(0)) if cos_sin is not None else (0, 0)
    weights, eps = (norms[:2], norms.eps) if norms is not None else ((None, None), 0.0)
    block = triton.next_power_of_2(dim)
    per_program = heads_per_program(all_heads, block)
    _qkv_rope_store_kernel[len(qkv), triton.cdiv(all_heads, per_program)](
        qkv, q, writable(k_cache), writable(v_cache), *(kv_scales or (None, None)), slots, positions, cos_sin, *weights,
        half, stride, eps,
        Q_HEADS=heads, KV_HEADS=kv_heads, DIM=dim, HEADS=per_program, BLOCK=block,
    )  # fmt: skip
    return q
