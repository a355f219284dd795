"""Paged attention in C++ (`cpu.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.native.library import call, type_code
from octavo_kernels.paged_attention.batch import PagedBatch


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
    kv_scales: None = None,
) -> Tensor:
    _, heads, dim = q.shape
    _, block_size, kv_heads, _ = k_cache.shape
    rows = q if q.stride(2) == 1 and q.stride(1) == dim else q.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype)
    starts, contexts, tables = (x.contiguous() for x in (batch.query_start, batch.context_lens, batch.block_tables))
    layout = len(contexts), starts, contexts, tables, tables.shape[1]
    caches = k_cache, v_cache, block_size, kv_heads, dim
    options = float(scale), window or 0, softcap or 0.0, alibi_slopes, sinks
    call("paged_attention", type_code(q), rows, rows.stride(0), heads, *caches, *layout, *options, out)
    return out
