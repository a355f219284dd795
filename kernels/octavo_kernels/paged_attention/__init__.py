"""Causal attention of a ragged batch over a paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.kv_cache import KVScales, check_caches
from octavo_kernels.paged_attention import reference
from octavo_kernels.paged_attention.batch import PagedBatch

__all__ = ["PagedBatch", "paged_attention"]

MAX_GPU_DIM = 512
"""The widest heads of which a tile's rows fit into a GPU's registers and shared memory; wider ones run in PyTorch."""


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    kv_scales: KVScales | None = None,
) -> Tensor:
    """Attention of every token of a step to its sequence's cached keys, its own included.

    A step may mix prefill chunks and single decode tokens: each sequence's tokens are the last ones of its context.
    Query i sees key j of its sequence if `j <= i` and, with a window, `i - j < window`. Query head h reads KV head `h
    // (Hq / Hk)`.

    Args:
        q: [T, Hq, D].
        k_cache, v_cache: [N, B, Hk, D], contiguous, with this step's keys and values already stored.
        batch: the step's layout.
        scale: multiplies the scores (usually D ** -0.5).
        window: positions that a query attends to, its own included; None means all.
        softcap: scores become `softcap * tanh(score / softcap)` after scaling and before masking (Gemma 2).
        alibi_slopes: [Hq] float32; head h's score of query i and key j loses `alibi_slopes[h] * (i - j)` after that
            (Press et al. 2022).
        sinks: [Hq] float32; head h's weights add up to less than 1, as if there were a key of this score whose value is
            0 (gpt-oss).
        kv_scales: scales of an int8 or float8_e4m3fn cache, as `kv_store` wrote them.

    Returns:
        [T, Hq, D], contiguous, of the type of `q`.

    Raises:
        ValueError: shapes, types or settings do not fit.
    """
    _check(q, k_cache, v_cache, batch, kv_scales)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be more than 0, got {softcap}")
    for name, given in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if given is not None and (given.shape != q.shape[1:2] or given.dtype != torch.float32):
            raise ValueError(f"{name} must be [{q.shape[1]}] float32, got {tuple(given.shape)} {given.dtype}")
    run = backend(reference.paged_attention, q, gpu=q.shape[2] <= MAX_GPU_DIM, cpu=kv_scales is None)
    return run(
        q,
        k_cache,
        v_cache,
        batch,
        scale=scale,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        kv_scales=kv_scales,
    )


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch, kv_scales: KVScales | None) -> None:
    check_floats(q=q)
    if q.ndim != 3 or len(q) != len(batch.positions):
        raise ValueError(f"q must be [{len(batch.positions)}, Hq, D], got {tuple(q.shape)}")
    check_caches(q, k_cache, v_cache, kv_scales)
    if k_cache.shape[1] != batch.block_size:
        raise ValueError(f"the caches' blocks have {k_cache.shape[1]} tokens, the batch's {batch.block_size}")
    if q.shape[1] % k_cache.shape[2] != 0:
        raise ValueError(f"{q.shape[1]} query heads do not share {k_cache.shape[2]} KV heads evenly")
