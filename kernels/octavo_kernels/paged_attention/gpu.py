"""Paged attention in Triton: FlashAttention's online softmax (Dao et al. 2022) over keys found by the block table.

One program computes BLOCK_M rows of one sequence and one KV head. A row is one query head of one token: the G query
heads that share the KV head are packed next to each other (row = token * G + head), so a decode step fills a tile of
the matrix unit with G rows instead of one, and every key is read once for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.paged_attention.batch import PagedBatch


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0  # Triton has no tanh of its own; absolute error under 2e-7


@triton.jit
def _scores(q, k, key, position, slope, scale, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr):
    # "ieee": float32 products stay float32 instead of TF32, whose 10 bits of mantissa cost 1e-3
    scores = tl.dot(q, k, input_precision="ieee") * scale
    if SOFTCAP is not None:
        scores = SOFTCAP * _tanh(scores / SOFTCAP)
    if slope is not None:
        scores += slope[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
    visible = key[None, :] <= position[:, None]
    if WINDOW is not None:
        visible = visible & (position[:, None] - key[None, :] < WINDOW)
    return tl.where(visible, scores, float("-inf"))


@triton.jit(do_not_specialize=["stride_table"])
def _paged_attention_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    out_ptr,
    query_start_ptr,
    context_lens_ptr,
    block_tables_ptr,
    slopes_ptr,  # or None
    stride_token,
    stride_head,
    stride_table,
    scale,
    GROUP: tl.constexpr,  # query heads per KV head
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # tokens per cache block
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows per program
    BLOCK_N: tl.constexpr,  # keys per iteration
    BLOCK_D: tl.constexpr,  # DIM as a power of two
):
    tile, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_token = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - first_token
    if tile * BLOCK_M >= num_queries * GROUP:
        return
    context = tl.load(context_lens_ptr + sequence)
    table_ptr = block_tables_ptr + sequence.to(tl.int64) * stride_table

    # Rows past the end repeat the last token's, so that every row sees a key; they are not stored.
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = tl.minimum(row // GROUP, num_queries - 1)
    head = kv_head * GROUP + row % GROUP
    position = context - num_queries + query
    slope = tl.load(slopes_ptr + head) if slopes_ptr is not None else None
    column = tl.arange(0, BLOCK_D)
    in_head = column < DIM
    token = (first_token + query).to(tl.int64)
    q_offset = token[:, None] * stride_token + head[:, None] * stride_head + column[None, :]
    q = tl.load(q_ptr + q_offset, mask=in_head[None, :], other=0.0)

    # Keys that any row of the tile sees: [first_key, end_key)
    first_position = context - num_queries + tile * BLOCK_M // GROUP
    end_key = tl.minimum(context, first_position + (BLOCK_M - 1) // GROUP + 2)
    first_key = 0
    if WINDOW is not None:
        first_key = tl.maximum(0, first_position - WINDOW + 1)

    # A finite start: a row that sees nothing yet has exp(-inf - start) = 0, where -inf would give exp(nan).
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(first_key, end_key, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        known = key < end_key
        block = tl.load(table_ptr + key // BLOCK_SIZE, mask=known, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        kv_offset = (slot * KV_HEADS + kv_head) * DIM
        # What is not loaded counts as zero: the cache's unused slots may hold NaN.
        k = tl.load(
            k_cache_ptr + kv_offset[None, :] + column[:, None], mask=known[None, :] & in_head[:, None], other=0.0
        )
        v = tl.load(
            v_cache_ptr + kv_offset[:, None] + column[None, :], mask=known[:, None] & in_head[None, :], other=0.0
        )
        scores = _scores(q, k, key, position, slope, scale, WINDOW, SOFTCAP)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        shrink = tl.exp(largest - new_largest)
        weights = tl.exp(scores - new_largest[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = new_largest

    out_offset = (token[:, None] * (KV_HEADS * GROUP) + head[:, None]) * DIM + column[None, :]
    real = (row < num_queries * GROUP)[:, None] & in_head[None, :]
    tl.store(out_ptr + out_offset, out / total[:, None], mask=real)


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
) -> Tensor:
    tokens, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    rows = batch.max_query_len * group
    block_d = max(16, triton.next_power_of_2(dim))
    block_m, block_n = _tile(rows, block_d * q.element_size())
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    grid = (triton.cdiv(rows, block_m), kv_heads, len(batch.context_lens))
    _paged_attention_kernel[grid](
        q,
        k_cache,
        v_cache,
        out,
        batch.query_start,
        batch.context_lens,
        batch.block_tables,
        alibi_slopes,
        q.stride(0),
        q.stride(1),
        batch.block_tables.stride(0),
        scale,
        GROUP=group,
        KV_HEADS=kv_heads,
        DIM=dim,
        BLOCK_SIZE=batch.block_size,
        WINDOW=window,
        SOFTCAP=softcap,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_stages=2,
    )
    return out


def _tile(rows: int, row_bytes: int) -> tuple[int, int]:
    """Rows and keys per tile: at least the 16 that tl.dot wants, and few enough for any GPU since Ampere.

    Heads of up to 256 take at most 72 KiB of shared memory (float32, D = 128); compute capability 8.6 has 99 KiB.
    """
    block_m = min(64, 32768 // row_bytes, triton.next_power_of_2(rows))
    block_n = min(64, 16384 // row_bytes)
    return max(16, block_m), max(16, block_n)
