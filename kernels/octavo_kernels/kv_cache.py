"""The types and scales of the paged cache, and their check, shared by all ops that use it."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import check_floats

KVScales = tuple[Tensor, Tensor]
"""Scales of an 8-bit cache, by which the codes of keys and of values are multiplied: two [N, B, Hk] float32."""

LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The code of a head's largest value, by the codes' type."""


def check_caches(like: Tensor, k_cache: Tensor, v_cache: Tensor, kv_scales: KVScales | None) -> None:
    """Raise ValueError unless the caches are contiguous [N, B, Hk, D] of the type of `like`, or codes with scales.

    Args:
        like: [T, H, D] queries or keys.
    """
    if k_cache.ndim != 4 or k_cache.shape != v_cache.shape or k_cache.shape[3] != like.shape[2]:
        raise ValueError(
            f"caches must both be [N, B, Hk, {like.shape[2]}], got {tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("the caches must be contiguous")
    if kv_scales is None:
        check_floats(q_or_k=like, k_cache=k_cache, v_cache=v_cache)
        return
    if k_cache.dtype not in LARGEST_CODE or v_cache.dtype != k_cache.dtype:
        raise ValueError(f"codes must both be int8 or float8_e4m3fn, got {k_cache.dtype} and {v_cache.dtype}")
    for scales in kv_scales:
        if scales.shape != k_cache.shape[:3] or scales.dtype != torch.float32 or not scales.is_contiguous():
            raise ValueError(
                f"kv_scales must both be {tuple(k_cache.shape[:3])} float32, got {tuple(scales.shape)} {scales.dtype}"
            )
