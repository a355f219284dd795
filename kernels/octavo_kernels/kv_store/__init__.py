"""Write a step's keys and values into the paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import check_floats, use_gpu
from octavo_kernels.kv_store import reference
from octavo_kernels.native.library import use_cpu


def kv_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Copy token t's key and value to cache slot `slots[t]`, that is block `slot // B` at offset `slot % B`.

    Args:
        k, v: [T, Hk, D]; may be strided views of a fused projection, with their last dimension contiguous.
        k_cache, v_cache: [N, B, Hk, D], contiguous, of the type of `k`.
        slots: [T] int64, all different.

    Raises:
        ValueError: shapes, types or layouts do not fit.
    """
    _check(k, v, k_cache, v_cache, slots)
    if use_gpu(k):
        from octavo_kernels.kv_store import gpu

        gpu.kv_store(k, v, k_cache, v_cache, slots)
    elif use_cpu(k, v):
        from octavo_kernels.kv_store import cpu

        cpu.kv_store(k, v, k_cache, v_cache, slots)
    else:
        reference.kv_store(k, v, k_cache, v_cache, slots)


def _check(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    check_floats(k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    if k.ndim != 3 or k.shape != v.shape:
        raise ValueError(f"k and v must both be [T, Hk, D], got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.stride(2) != 1 or v.stride(2) != 1:
        raise ValueError("the last dimension of k and v must be contiguous")
    if k_cache.ndim != 4 or k_cache.shape != v_cache.shape or k_cache.shape[2:] != k.shape[1:]:
        raise ValueError(
            f"caches must both be [N, B, {k.shape[1]}, {k.shape[2]}], "
            f"got {tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("the caches must be contiguous")
    if slots.shape != k.shape[:1] or slots.dtype != torch.int64:
        raise ValueError(f"slots must be [{k.shape[0]}] int64, got {tuple(slots.shape)} {slots.dtype}")
