"""KV store in Triton: one program per token and a few heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.kv_cache import KVScales


@triton.jit
def _int8(x):
    """Round to the nearest integer, ties to even: 1.5 * 2^23 leaves a float32 no fraction."""
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def _float8(x):
    """The byte of float8_e4m3fn nearest to x, |x| <= 448, ties to even.

    By hand, because GPUs before compute capability 8.9 have no instruction for it, and Triton's interpreter (3.6 to
    3.9) rounds 31.5 to 16.
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # 20 of 23 bits of mantissa go; exponents are counted from 127 there and from 7 here
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (127 - 7) * 8
    # below 2^-6 codes are multiples of 2^-9, the last bit of a float32 of 16384 to 32768
    subnormal = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    return (tl.where(size < 0x3C800000, subnormal, normal) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def store_heads(x, cache_ptr, scales_ptr, place, known, column, dim):
    """Write keys or values x [H, D] to cells `place` [H] int64 of a cache; as codes where `scales_ptr` is not None.

    What lies beyond `dim` in x is zero.
    """
    mask = known[:, None] & (column < dim)[None, :]
    target = cache_ptr + place[:, None] * dim + column[None, :]
    if scales_ptr is None:
        tl.store(target, x, mask=mask)
    else:
        FLOAT8: tl.constexpr = cache_ptr.dtype.element_ty == tl.uint8
        LARGEST: tl.constexpr = 448.0 if FLOAT8 else 127.0
        wide = x.to(tl.float32)
        size = tl.abs(wide)
        finite = tl.sum((size < float("inf")).to(tl.int32), axis=1) == column.shape[0]  # NaN is not less either
        top = tl.max(tl.where(size < float("inf"), size, 0.0), axis=1)
        largest = tl.full([x.shape[0]], LARGEST, tl.float32)
        inverse = tl.div_rn(largest, tl.where(top > 0.0, top, 1.0))  # `/` is not rounded as PyTorch's
        inverse = tl.where(finite & (top > 0.0), inverse, 0.0)
        scaled = tl.where(finite[:, None], wide, 0.0) * inverse[:, None]
        codes = _float8(tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)) if FLOAT8 else _int8(scaled)
        tl.store(target, codes, mask=mask)
        tl.store(scales_ptr + place, tl.where(finite, top * (1.0 / LARGEST), float("nan")), mask=known)


@triton.jit
def _kv_store_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scales_ptr,  # or None
    v_scales_ptr,
    slots_ptr,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    heads,
    dim,
    HEADS: tl.constexpr,  # heads per program
    BLOCK: tl.constexpr,  # dim as a power of two
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)
    known = head < heads
    mask = known[:, None] & (column < dim)[None, :]
    k = tl.load(k_ptr + token * k_stride_token + head[:, None] * k_stride_head + column[None, :], mask=mask, other=0.0)
    v = tl.load(v_ptr + token * v_stride_token + head[:, None] * v_stride_head + column[None, :], mask=mask, other=0.0)
    place = tl.load(slots_ptr + token) * heads + head
    store_heads(k, k_cache_ptr, k_scales_ptr, place, known, column, dim)
    store_heads(v, v_cache_ptr, v_scales_ptr, place, known, column, dim)


def kv_store(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: KVScales | None = None
) -> None:
    tokens, heads, dim = k.shape
    block = triton.next_power_of_2(dim)
    per_program = heads_per_program(heads, block)
    _kv_store_kernel[tokens, triton.cdiv(heads, per_program)](
        k, v, *map(writable, (k_cache, v_cache)), *(kv_scales or (None, None)), slots,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), heads, dim,
        HEADS=per_program, BLOCK=block,
    )  # fmt: skip


def writable(cache: Tensor) -> Tensor:
    """A cache as its kernels write it: float8 as bytes."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


def heads_per_program(heads: int, block: int) -> int:
    """So many that a program of four warps has some eight values per thread."""
    return max(1, min(1024 // block, int(triton.next_power_of_2(heads))))
