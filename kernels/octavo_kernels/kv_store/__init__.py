"""Write a step's keys and values into the paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.kv_cache import KVScales, check_caches
from octavo_kernels.kv_store import reference


def kv_store(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: KVScales | None = None
) -> None:
    """Copy token t's key and value to cache slot `slots[t]`, that is block `slot // B` at offset `slot % B`.

    An 8-bit cache stores codes, and `kv_scales` the factors by which they are multiplied (`reference.quantize`).

    Args:
        k, v: [T, Hk, D]; may be strided views of a fused projection, with their last dimension contiguous.
        k_cache, v_cache: [N, B, Hk, D], contiguous, of the type of `k`, or of int8 or float8_e4m3fn with scales.
        slots: [T] int64, all different.
        kv_scales: scales of keys and of values, [N, B, Hk] float32.

    Raises:
        ValueError: shapes, types or layouts do not fit.
    """
    _check(k, v, k_cache, v_cache, slots, kv_scales)
    backend(reference.kv_store, k, v, cpu=kv_scales is None)(k, v, k_cache, v_cache, slots, kv_scales)


def _check(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: KVScales | None) -> None:
    check_floats(k=k, v=v)
    if k.ndim != 3 or k.shape != v.shape:
        raise ValueError(f"k and v must both be [T, Hk, D], got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.stride(2) != 1 or v.stride(2) != 1:
        raise ValueError("the last dimension of k and v must be contiguous")
    check_caches(k, k_cache, v_cache, kv_scales)
    if k_cache.shape[2] != k.shape[1]:
        raise ValueError(f"the caches have {k_cache.shape[2]} heads, k and v {k.shape[1]}")
    if slots.shape != k.shape[:1] or slots.dtype != torch.int64:
        raise ValueError(f"slots must be [{k.shape[0]}] int64, got {tuple(slots.shape)} {slots.dtype}")
