"""Everything between a layer's fused projection and attention in one pass: split, norm, rotate, store keys and
values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.kv_cache import KVScales, check_caches


class HeadNorms(NamedTuple):
    """RMS norms of each head's query and key, before they are rotated (Qwen 3, Gemma 3)."""

    q: Tensor  # [D] float32
    k: Tensor  # [D] float32
    eps: float


def qkv_rope_store(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    *,
    cos_sin: Tensor | None = None,
    norms: HeadNorms | None = None,
    kv_scales: KVScales | None = None,
) -> Tensor:
    """The same as `rms_norm`, `rotary_` and `kv_store` one after the other, each rounding its result.

    Args:
        qkv: [T, (Hq + 2 Hk) D], contiguous: query heads, key heads, value heads. Overwritten.
        k_cache, v_cache: [N, B, Hk, D]; see `kv_store`.
        slots: [T] int64, cache slot of each token.
        positions: [T] int64, each below P.
        cos_sin: [P, rot_dim] float32, see `rotary_`; None for no rotation.
        norms: None for no norms.
        kv_scales: scales of an 8-bit cache, see `kv_store`.

    Returns:
        The queries [T, Hq, D].

    Raises:
        ValueError: shapes, types or layouts do not fit.
    """
    _check(qkv, k_cache, v_cache, slots, positions, cos_sin, norms, kv_scales)
    from octavo_kernels.qkv_rope_store import reference

    run = backend(reference.qkv_rope_store, qkv, cpu=False)
    return run(qkv, k_cache, v_cache, slots, positions, cos_sin, norms, kv_scales)


def _check(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    norms: HeadNorms | None,
    kv_scales: KVScales | None,
) -> None:
    check_floats(qkv=qkv)
    if qkv.ndim != 2 or not qkv.is_contiguous():
        raise ValueError(f"qkv must be [T, (Hq + 2 Hk) D] and contiguous, got {tuple(qkv.shape)}")
    dim = k_cache.shape[-1]
    if k_cache.ndim != 4 or qkv.shape[1] % dim or qkv.shape[1] // dim <= 2 * k_cache.shape[2]:
        raise ValueError(f"qkv of {qkv.shape[1]} columns has no heads beside the caches' {tuple(k_cache.shape)}")
    check_caches(qkv.view(len(qkv), -1, dim), k_cache, v_cache, kv_scales)
    for name, x in (("slots", slots), ("positions", positions)):
        if x.shape != qkv.shape[:1] or x.dtype != torch.int64:
            raise ValueError(f"{name} must be [{len(qkv)}] int64, got {tuple(x.shape)} {x.dtype}")
    for weight in norms[:2] if norms else ():
        if weight.shape != (dim,) or weight.dtype != torch.float32:
            raise ValueError(f"norms must be [{dim}] float32, got {tuple(weight.shape)} {weight.dtype}")
    if cos_sin is not None and (
        cos_sin.ndim != 2 or cos_sin.shape[1] % 2 or cos_sin.shape[1] > dim or cos_sin.dtype != torch.float32
    ):
        raise ValueError(
            f"cos_sin must be [P, rot_dim] float32, rot_dim even and at most {dim}, got {tuple(cos_sin.shape)}"
        )
