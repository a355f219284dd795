"""KV store in Triton: one program per token, its key and value as one run each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kv_store_kernel(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    dim,
    size,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < size
    head, within = column // dim, column % dim
    k = tl.load(k_ptr + token * k_stride_token + head * k_stride_head + within, mask=mask)
    v = tl.load(v_ptr + token * v_stride_token + head * v_stride_head + within, mask=mask)
    target = tl.load(slots_ptr + token) * size + column
    tl.store(k_cache_ptr + target, k, mask=mask)
    tl.store(v_cache_ptr + target, v, mask=mask)


def kv_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    _, heads, dim = k.shape
    _kv_store_kernel[(len(k),)](
        k,
        v,
        k_cache,
        v_cache,
        slots,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        dim,
        heads * dim,
        BLOCK=triton.next_power_of_2(heads * dim),
    )
