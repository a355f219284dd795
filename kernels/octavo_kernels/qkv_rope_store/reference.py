"""QKV split, norm, rotation and KV store by calling the separate ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from octavo_kernels.kv_cache import KVScales
from octavo_kernels.kv_store import kv_store
from octavo_kernels.rms_norm import rms_norm
from octavo_kernels.rotary import rotary_

if TYPE_CHECKING:
    from octavo_kernels.qkv_rope_store import HeadNorms


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
    heads = qkv.view(len(qkv), -1, dim)
    q, k, v = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads : -kv_heads], heads[:, -kv_heads:]
    if norms is not None:
        q, k = rms_norm(q, norms.q, norms.eps), rms_norm(k, norms.k, norms.eps)
    if cos_sin is not None:
        rotary_(q, k, positions, cos_sin)
    kv_store(k, v, k_cache, v_cache, slots, kv_scales)
    return q
