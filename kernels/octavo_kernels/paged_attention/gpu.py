"""Paged attention in Triton: FlashAttention's online softmax (Dao et al. 2022) over keys found by the block table.

A program computes BLOCK_M rows of one sequence and one KV head. A row is one query head of one token: the G query
heads that share the KV head are packed next to each other (row = token * G + head), so a decode step fills a tile of
the matrix unit with G rows instead of one, and every key is read once for all of them.

A sequence whose rows of this step fit one tile is *decoded*: its keys are cut into splits, each a program of its own
(Flash-Decoding, Dao et al. 2023), and a second kernel folds the splits' results in order. All other sequences are
*chunks*: one program walks through all keys that its tile sees. No grid depends on a value on the device, and nothing
waits for it: a step of decodes can be captured in a CUDA graph, for contexts up to the batch's `max_context_len`.

With `batch.split_keys` the result for a token is the same to the last bit whatever else is in the step and however its
sequence was cut into chunks: splits then begin at multiples of `split_keys`, chunks walk through the same splits and
fold them as the second kernel does, and both kernels use one tile shape and one instruction sequence. A tile or a
split that a row does not see leaves its sums as they are (weights are 0, the largest score stays). Without it the
number of splits follows the number of sequences and the GPU, and chunks keep one running softmax.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.dispatch import gpu_traits
from octavo_kernels.kv_cache import KVScales
from octavo_kernels.paged_attention.batch import PagedBatch

LOG2_E = tl.constexpr(1.4426950408889634)  # scores are kept as powers of two: exp2 is one instruction


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0  # Triton has no tanh of its own; absolute error under 2e-7


@triton.jit
def _load_keys(cache_ptr, place, known, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of keys or values [BLOCK_N, BLOCK_D]; the cache's unused slots may hold NaN, and zero is put for them."""
    column = tl.arange(0, BLOCK_D)
    mask = known[:, None] & (column < DIM)[None, :]
    return tl.load(cache_ptr + (place * DIM)[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def _wide(codes, DTYPE: tl.constexpr):
    """Codes or values in the type of the queries."""
    if codes.dtype == tl.float8e4nv and tl.bfloat16 == DTYPE:
        # In machine code, float16 to bfloat16 is an instruction a value; over float32 two of three take two values.
        return codes.to(tl.float16).to(tl.float32).to(DTYPE)
    return codes.to(DTYPE)


@triton.jit
def _scores(
    q,
    k,
    k_scales,
    key,
    position,
    slope,
    scale,
    cap,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    scores = tl.dot(q, tl.trans(_wide(k, q.dtype)), input_precision=PRECISION) * scale
    if k_scales is not None:
        scores = scores * k_scales[None, :]
    if cap is not None:
        scores = cap * _tanh(scores)
    if slope is not None:
        scores += slope[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
    if MASKED:
        visible = key[None, :] <= position[:, None]
        if WINDOW is not None:
            visible = visible & (position[:, None] - key[None, :] < WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def _weigh(weights, v, v_scales, out, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """out + weights @ (v * v_scales)"""
    if v_scales is not None:
        if tl.float16 == DTYPE:  # whose range is too short for weights times scales
            v = v.to(tl.float32) * v_scales[:, None]
        else:
            weights = weights * v_scales[None, :]
    return tl.dot(weights.to(DTYPE), _wide(v, DTYPE), out, input_precision=PRECISION)


@triton.jit
def _attend(
    largest,
    total,
    out,
    q,
    position,
    slope,
    table_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scales_ptr,
    v_scales_ptr,
    kv_head,
    first,  # keys from here, a multiple of BLOCK_N ...
    end,  # ... to here
    first_key,  # below which none is read
    scale,
    cap,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,  # whether some row may not see some key
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Go on with the softmax of a tile of rows: largest score and sum of weights [BLOCK_M], weighted values."""
    for start in range(first, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        known = key < end
        if WINDOW is not None:
            known = known & (key >= first_key)
        block = tl.load(table_ptr + key // BLOCK_SIZE, mask=known, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        place = slot * KV_HEADS + kv_head
        k = _load_keys(k_cache_ptr, place, known, DIM, BLOCK_D)
        v = _load_keys(v_cache_ptr, place, known, DIM, BLOCK_D)
        k_scales = tl.load(k_scales_ptr + place, mask=known, other=0.0) if k_scales_ptr is not None else None
        v_scales = tl.load(v_scales_ptr + place, mask=known, other=0.0) if v_scales_ptr is not None else None
        scores = _scores(q, k, k_scales, key, position, slope, scale, cap, WINDOW, MASKED, PRECISION)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        shrink = tl.exp2(largest - new_largest)
        weights = tl.exp2(scores - new_largest[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        out = _weigh(weights, v, v_scales, out * shrink[:, None], q.dtype, PRECISION)
        largest = new_largest
    return largest, total, out


@triton.jit
def _nothing(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The softmax over no keys. A finite start: -inf would give exp2(nan) in a row that sees nothing yet."""
    largest = tl.full([BLOCK_M], -1e30, tl.float32)
    return largest, tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, BLOCK_D], tl.float32)


@triton.jit
def _fold(largest, total, out, split_largest, split_total, split_out):
    """The softmax over more keys from those over its parts; `out` [..., D] has one dimension more than the others."""
    new_largest = tl.maximum(largest, split_largest)
    old, new = tl.exp2(largest - new_largest), tl.exp2(split_largest - new_largest)
    out = out * tl.expand_dims(old, -1) + split_out * tl.expand_dims(new, -1)
    return new_largest, total * old + split_total * new, out


@triton.jit
def _splits(first_key, context, max_splits, SPLIT_KEYS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where a decoded sequence's first split begins, and how many keys each has."""
    if SPLIT_KEYS is not None:
        return first_key // SPLIT_KEYS * SPLIT_KEYS, SPLIT_KEYS
    origin = first_key // BLOCK_N * BLOCK_N
    return origin, tl.cdiv(tl.cdiv(context - origin, max_splits), BLOCK_N) * BLOCK_N


@triton.jit
def _first_key(first_position, WINDOW: tl.constexpr):
    return first_position * 0 if WINDOW is None else tl.maximum(0, first_position - WINDOW + 1)


@triton.jit
def _load_rows(
    q_ptr,
    first_token,
    row,
    num_queries,
    context,
    kv_head,
    stride_token,
    stride_head,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows of one sequence: queries [BLOCK_M, BLOCK_D], positions, flat tokens, heads.

    Rows past the end repeat the last token's, so that every row sees a key; they are not stored.
    """
    query = tl.minimum(row // GROUP, num_queries - 1)
    head = kv_head * GROUP + row % GROUP
    token = (first_token + query).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    offset = token[:, None] * stride_token + head[:, None] * stride_head + column[None, :]
    q = tl.load(q_ptr + offset, mask=(column < DIM)[None, :], other=0.0)
    return q, context - num_queries + query, token, head


@triton.jit
def _store_rows(
    out_ptr, out, largest, total, sinks_ptr, token, head, real,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    if sinks_ptr is not None:
        total += tl.exp2(tl.load(sinks_ptr + head) * LOG2_E - largest)
    column = tl.arange(0, BLOCK_D)
    offset = (token[:, None] * HEADS + head[:, None]) * DIM + column[None, :]
    tl.store(out_ptr + offset, out / total[:, None], mask=real[:, None] & (column < DIM)[None, :])


@triton.jit(do_not_specialize=["max_rows", "max_splits", "stride_table"])
def _decode_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scales_ptr,  # or None
    v_scales_ptr,
    out_ptr,
    partial_ptr,  # [S, Hk, max_rows, max_splits, BLOCK_D] float32; unused with one split
    sums_ptr,  # [S, Hk, max_rows, max_splits, 2] float32: largest score, sum of weights
    query_start_ptr,
    context_lens_ptr,
    block_tables_ptr,
    slopes_ptr,  # or None
    sinks_ptr,  # or None
    stride_token,
    stride_head,
    stride_table,
    scale,
    cap,  # or None
    max_rows,  # of a sequence, at most DECODE_ROWS
    max_splits,
    GROUP: tl.constexpr,  # query heads per KV head
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # tokens per cache block
    WINDOW: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,  # or None: as the context asks for
    DECODE_ROWS: tl.constexpr,  # sequences of more rows are not ours; at most BLOCK_M
    ONE_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows per program
    BLOCK_N: tl.constexpr,  # keys per iteration
    BLOCK_D: tl.constexpr,  # DIM as a power of two
):
    split, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_token = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - first_token
    context = tl.load(context_lens_ptr + sequence)
    first_key = _first_key(context - num_queries, WINDOW)
    origin, split_keys = _splits(first_key, context, max_splits, SPLIT_KEYS, BLOCK_N)
    begin = origin + split * split_keys
    if num_queries * GROUP > DECODE_ROWS or begin >= context:
        return
    end = tl.minimum(context, begin + split_keys)
    begin = tl.maximum(begin, first_key // BLOCK_N * BLOCK_N)

    row = tl.arange(0, BLOCK_M)
    q, position, token, head = _load_rows(
        q_ptr, first_token, row, num_queries, context, kv_head, stride_token, stride_head, GROUP, DIM, BLOCK_D
    )
    slope = tl.load(slopes_ptr + head) * LOG2_E if slopes_ptr is not None else None
    table_ptr = block_tables_ptr + sequence.to(tl.int64) * stride_table
    largest, total, out = _nothing(BLOCK_M, BLOCK_D)
    largest, total, out = _attend(
        largest, total, out, q, position, slope, table_ptr, k_cache_ptr, v_cache_ptr, k_scales_ptr, v_scales_ptr,
        kv_head, begin, end, first_key, scale, cap,
        KV_HEADS, DIM, BLOCK_SIZE, WINDOW, True, PRECISION, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    real = row < num_queries * GROUP
    if ONE_SPLIT:
        _store_rows(out_ptr, out, largest, total, sinks_ptr, token, head, real, KV_HEADS * GROUP, DIM, BLOCK_D)
    else:
        place = ((sequence.to(tl.int64) * KV_HEADS + kv_head) * max_rows + row) * max_splits + split
        column = tl.arange(0, BLOCK_D)
        tl.store(partial_ptr + place[:, None] * BLOCK_D + column[None, :], out, mask=real[:, None])
        tl.store(sums_ptr + place * 2, largest, mask=real)
        tl.store(sums_ptr + place * 2 + 1, total, mask=real)


@triton.jit(do_not_specialize=["max_rows", "max_splits"])
def _merge_kernel(
    out_ptr,
    partial_ptr,
    sums_ptr,
    query_start_ptr,
    context_lens_ptr,
    sinks_ptr,  # or None
    max_rows,
    max_splits,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    DECODE_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,  # splits whose results are loaded at once
):
    row, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_token = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - first_token
    if num_queries * GROUP > DECODE_ROWS or row >= num_queries * GROUP:
        return
    context = tl.load(context_lens_ptr + sequence)
    origin, split_keys = _splits(_first_key(context - num_queries, WINDOW), context, max_splits, SPLIT_KEYS, BLOCK_N)
    num_splits = tl.cdiv(context - origin, split_keys)
    place = ((sequence.to(tl.int64) * KV_HEADS + kv_head) * max_rows + row) * max_splits
    column = tl.arange(0, BLOCK_D)
    one = tl.arange(0, 1)
    largest, total, out = _nothing(1, BLOCK_D)
    for begin in range(0, num_splits, UNROLL):
        for ahead in tl.static_range(UNROLL):
            split = begin + ahead
            there = place + split + one
            known = split + one < num_splits
            split_largest = tl.load(sums_ptr + there * 2, mask=known, other=-1e30)
            split_total = tl.load(sums_ptr + there * 2 + 1, mask=known, other=0.0)
            split_out = tl.load(
                partial_ptr + there[:, None] * BLOCK_D + column[None, :], mask=known[:, None], other=0.0
            )
            largest, total, out = _fold(largest, total, out, split_largest, split_total, split_out)
    token = (first_token + row // GROUP).to(tl.int64) + one
    head = kv_head * GROUP + row % GROUP + one
    _store_rows(out_ptr, out, largest, total, sinks_ptr, token, head, one == 0, KV_HEADS * GROUP, DIM, BLOCK_D)


@triton.jit
def _owner(tile, query_start_ptr, num_sequences, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The sequence that owns a tile, and its first tile: s has those from `query_start[s] * GROUP // BLOCK_M + s`."""
    low, high = num_sequences * 0, num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        mine = tl.load(query_start_ptr + middle) * GROUP // BLOCK_M + middle <= tile
        low = tl.where(mine, middle, low)
        high = tl.where(mine, high, middle)
    return low, tl.load(query_start_ptr + low) * GROUP // BLOCK_M + low


@triton.jit(do_not_specialize=["stride_table", "num_sequences"])
def _chunk_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scales_ptr,  # or None
    v_scales_ptr,
    out_ptr,
    query_start_ptr,
    context_lens_ptr,
    block_tables_ptr,
    slopes_ptr,  # or None
    sinks_ptr,  # or None
    num_sequences,
    stride_token,
    stride_head,
    stride_table,
    scale,
    cap,  # or None
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,  # or None: one running softmax
    DECODE_ROWS: tl.constexpr,  # sequences of up to as many rows are not ours
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The last tiles of a chunk see the most keys: they begin first.
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    sequence, first_tile = _owner(tile, query_start_ptr, num_sequences, GROUP, BLOCK_M)
    first_token = tl.load(query_start_ptr + sequence)
    num_queries = tl.load(query_start_ptr + sequence + 1) - first_token
    first_row = (tile - first_tile) * BLOCK_M
    if num_queries * GROUP <= DECODE_ROWS or first_row >= num_queries * GROUP:
        return
    context = tl.load(context_lens_ptr + sequence)
    row = first_row + tl.arange(0, BLOCK_M)
    q, position, token, head = _load_rows(
        q_ptr, first_token, row, num_queries, context, kv_head, stride_token, stride_head, GROUP, DIM, BLOCK_D
    )
    slope = tl.load(slopes_ptr + head) * LOG2_E if slopes_ptr is not None else None
    table_ptr = block_tables_ptr + sequence.to(tl.int64) * stride_table

    # Keys that any row of the tile sees: [first_key, end)
    first_position = context - num_queries + first_row // GROUP
    last_position = tl.minimum(context - 1, context - num_queries + (first_row + BLOCK_M - 1) // GROUP)
    end = last_position + 1
    first_key = _first_key(first_position, WINDOW)
    begin = first_key // BLOCK_N * BLOCK_N
    largest, total, out = _nothing(BLOCK_M, BLOCK_D)
    if SPLIT_KEYS is not None:
        for split in range(first_key // SPLIT_KEYS * SPLIT_KEYS, end, SPLIT_KEYS):
            split_largest, split_total, split_out = _nothing(BLOCK_M, BLOCK_D)
            split_largest, split_total, split_out = _attend(
                split_largest, split_total, split_out,
                q, position, slope, table_ptr, k_cache_ptr, v_cache_ptr, k_scales_ptr, v_scales_ptr, kv_head,
                tl.maximum(begin, split), tl.minimum(end, split + SPLIT_KEYS), first_key, scale, cap,
                KV_HEADS, DIM, BLOCK_SIZE, WINDOW, True, PRECISION, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            largest, total, out = _fold(largest, total, out, split_largest, split_total, split_out)
    else:
        # Whole tiles of keys that all rows see go without a mask, which costs more than the matrix unit.
        masked = begin
        if WINDOW is None:
            masked = (first_position + 1) // BLOCK_N * BLOCK_N
            largest, total, out = _attend(
                largest, total, out, q, position, slope, table_ptr, k_cache_ptr, v_cache_ptr, k_scales_ptr,
                v_scales_ptr, kv_head, begin, masked, first_key, scale, cap,
                KV_HEADS, DIM, BLOCK_SIZE, WINDOW, False, PRECISION, BLOCK_N, BLOCK_D,
            )  # fmt: skip
        largest, total, out = _attend(
            largest, total, out, q, position, slope, table_ptr, k_cache_ptr, v_cache_ptr, k_scales_ptr, v_scales_ptr,
            kv_head, masked, end, first_key, scale, cap,
            KV_HEADS, DIM, BLOCK_SIZE, WINDOW, True, PRECISION, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    real = row < num_queries * GROUP
    _store_rows(out_ptr, out, largest, total, sinks_ptr, token, head, real, KV_HEADS * GROUP, DIM, BLOCK_D)


class _Tile(NamedTuple):
    """A program's rows and keys, and how it is compiled."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


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
    if k_cache.dtype == torch.float8_e4m3fn and gpu_traits(q.device).capability < (8, 9):
        raise ValueError("a float8 cache needs a GPU of compute capability 8.9 or more: use int8")
    tokens, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    group = heads // kv_heads
    k_scales, v_scales = kv_scales or (None, None)
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    arrays = q, k_cache, v_cache, k_scales, v_scales, out
    layout = batch.query_start, batch.context_lens, batch.block_tables, alibi_slopes, sinks
    strides = q.stride(0), q.stride(1), batch.block_tables.stride(0)
    # exp2 for exp: everything is scaled by log2(e); a soft cap's argument is not
    factors = (scale * LOG2_E.value, None) if softcap is None else (scale / softcap, softcap * LOG2_E.value)
    block_d = max(16, triton.next_power_of_2(dim))
    same = {
        "GROUP": group, "KV_HEADS": kv_heads, "DIM": dim, "WINDOW": window, "SPLIT_KEYS": batch.split_keys,
        "BLOCK_D": block_d,
    }  # fmt: skip
    # "tf32x3": float32 products as sums of three TF32 products, whose 10 bits of mantissa alone cost 1e-3
    both = {"BLOCK_SIZE": batch.block_size, "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee"}
    decode, chunk, decode_rows = _tiles(batch, group, block_d, q)
    same |= {"DECODE_ROWS": decode_rows}
    if batch.min_query_len * group <= decode_rows:
        splits, rows = _max_splits(batch, kv_heads, window, decode), min(decode_rows, batch.max_query_len * group)
        shape = len(batch.context_lens), kv_heads, rows, splits
        partial = torch.empty((*shape, block_d) if splits > 1 else 1, dtype=torch.float32, device=q.device)
        sums = torch.empty((*shape, 2) if splits > 1 else 1, dtype=torch.float32, device=q.device)
        _decode_kernel[splits, kv_heads, shape[0]](
            *arrays, partial, sums, *layout, *strides, *factors, rows, splits, **same, **both,
            ONE_SPLIT=splits == 1, BLOCK_M=decode.rows, BLOCK_N=decode.keys,
            num_warps=decode.num_warps, num_stages=decode.num_stages,
        )  # fmt: skip
        if splits > 1:
            unroll = min(8, triton.next_power_of_2(splits))
            _merge_kernel[rows, kv_heads, shape[0]](
                out, partial, sums, *layout[:2], sinks, rows, splits, **same,
                BLOCK_N=decode.keys, UNROLL=unroll, num_warps=4 if block_d > 64 else 1,
            )  # fmt: skip
    if batch.max_query_len * group > decode_rows:
        grid = (tokens * group // chunk.rows + len(batch.context_lens), kv_heads)
        _chunk_kernel[grid](
            *arrays, *layout, len(batch.context_lens), *strides, *factors, **same, **both,
            BLOCK_M=chunk.rows, BLOCK_N=chunk.keys, num_warps=chunk.num_warps, num_stages=chunk.num_stages,
        )  # fmt: skip
    return out


def _tiles(batch: PagedBatch, group: int, block_d: int, q: Tensor) -> tuple[_Tile, _Tile, int]:
    """Tiles of decodes and of chunks, and up to how many rows a sequence is decoded.

    At least the 16 rows that tl.dot wants, and what registers and shared memory have room for: keys take 32 KiB a
    stage, K and V together.
    """
    wide, row_bytes = q.dtype == torch.float32, block_d * q.element_size()
    keys = max(16, min(128, (8192 if wide else 16384) // row_bytes))
    one_token = max(16, triton.next_power_of_2(group))
    roomy = gpu_traits(q.device).shared_memory > 130_000  # compute capability 8.0 and 9.0 against 8.6, 8.9 and 12.0
    # Triton loads (stages - 2) / 2 tiles of keys ahead, rounded up, because their places are loaded before them.
    stages = 5 if roomy else 3
    warps = 4 if row_bytes <= 256 and not wide else 8
    if batch.split_keys is not None:  # one shape for all: the batch has no say
        tile = _Tile(max(64, one_token), keys, 8, 3)
        return tile, tile, one_token
    rows = triton.next_power_of_2(batch.max_query_len * group)
    decode = _Tile(max(16, rows) if rows <= 64 else one_token, keys, warps, stages)
    chunk = _Tile(128, keys, 8, 3) if roomy and row_bytes <= 256 and not wide else _Tile(64, keys, warps, 3)
    return decode, chunk, decode.rows


def _max_splits(batch: PagedBatch, kv_heads: int, window: int | None, tile: _Tile) -> int:
    """Splits of a decoded sequence at most: as `split_keys` asks, or as takes the least time."""
    span = batch.max_context_len if window is None else min(batch.max_context_len, window + tile.rows + tile.keys)
    if batch.split_keys is not None:
        return -(-span // batch.split_keys) + (window is not None)
    slots = 3 * gpu_traits(batch.context_lens.device).multiprocessors  # programs of 72 KiB that run at once on an H100
    return _fastest_splits(len(batch.context_lens) * kv_heads, span, tile.keys, slots)


@functools.lru_cache(maxsize=4096)
def _fastest_splits(programs: int, span: int, tile_keys: int, slots: int) -> int:
    """Into how many parts `programs` contexts of `span` keys are cut best when `slots` programs run at once.

    Rounds times keys of a part, with 128 more for its beginning and its merging (a guess, as long as no GPU has timed
    it).
    """
    most = max(1, min(64, span // (2 * tile_keys)))
    return min(range(1, most + 1), key=lambda splits: -(-programs * splits // slots) * (span / splits + 128))
