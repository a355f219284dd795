"""What LoRA adapters add, in Triton, for rows of any number of adapters in two launches: A x, then B (A x).

Each program finds its adapter by its tile of rows, and A and B by their addresses. Tiles have one shape for any number
of rows, and the columns of A are cut by their number alone, so that a row's bits are its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.lora.segments import TILE, Change, Segments

_SPAN = 1024
"""Columns of A that one program adds up: a decode step has few rows, and many programs read faster."""


@triton.jit(do_not_specialize=["tokens"])
def _shrink_kernel(
    x_ptr, low_ptr, rows_ptr, adapter_ptr, words_ptr, tokens, x_stride, words_stride,
    K: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile's rows times BLOCK_R rows of A, over SPAN columns; low: [spans, tokens, WIDTH]."""
    tile, span = tl.program_id(0), tl.program_id(2)
    words = words_ptr + tl.load(adapter_ptr + tile).to(tl.int64) * words_stride
    ranks = tl.load(words + 1)
    rank = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R >= ranks:
        return
    a_ptr = tl.load(words).to(tl.pointer_type(x_ptr.dtype.element_ty))
    row = tl.load(rows_ptr + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    x_row_ptr, a_row_ptr = x_ptr + row[:, None] * x_stride, a_ptr + rank.to(tl.int64)[:, None] * K
    total = tl.zeros([TILE, BLOCK_R], tl.float32)
    for start in range(0, SPAN, BLOCK_K):
        k = span * SPAN + start + tl.arange(0, BLOCK_K)
        x = tl.load(x_row_ptr + k[None, :], mask=(row >= 0)[:, None] & (k < K)[None, :], other=0.0)
        a = tl.load(a_row_ptr + k[None, :], mask=(rank < ranks)[:, None] & (k < K)[None, :], other=0.0)
        total = tl.dot(x, tl.trans(a), total, input_precision=PRECISION)
    place = (span.to(tl.int64) * tokens + row[:, None]) * WIDTH + rank[None, :]
    tl.store(low_ptr + place, total, mask=(row >= 0)[:, None] & (rank < ranks)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _expand_kernel(
    y_ptr, low_ptr, rows_ptr, adapter_ptr, words_ptr, tokens, y_stride, words_stride,
    first_size, second_size, third_size,
    WIDTH: tl.constexpr, SPANS: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Adds BLOCK_N outputs of part `program_id(2)` to a tile's rows."""
    tile, part = tl.program_id(0), tl.program_id(2)
    words = words_ptr + tl.load(adapter_ptr + tile).to(tl.int64) * words_stride + 2 + 3 * part
    rank, offset = tl.load(words + 1), tl.load(words + 2)
    size = tl.where(part == 0, first_size, tl.where(part == 1, second_size, third_size))
    before = tl.where(part == 0, 0, tl.where(part == 1, first_size, first_size + second_size))
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if (rank == 0) | (tl.program_id(1) * BLOCK_N >= size):
        return
    b_ptr = tl.load(words).to(tl.pointer_type(y_ptr.dtype.element_ty))
    row = tl.load(rows_ptr + tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    total = tl.zeros([TILE, BLOCK_N], tl.float32)
    for start in range(0, rank, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        known = (row >= 0)[:, None] & (r < rank)[None, :]
        low = tl.zeros([TILE, BLOCK_R], tl.float32)
        for span in tl.static_range(SPANS):
            place = (span * tokens.to(tl.int64) + row[:, None]) * WIDTH + offset + r[None, :]
            low += tl.load(low_ptr + place, mask=known, other=0.0)
        mask = (column < size)[:, None] & (r < rank)[None, :]
        b = tl.load(b_ptr + column.to(tl.int64)[:, None] * rank + r[None, :], mask=mask, other=0.0)
        total = tl.dot(low.to(b.dtype), tl.trans(b), total, input_precision=PRECISION)
    place, mask = row[:, None] * y_stride + before + column[None, :], (row >= 0)[:, None] & (column < size)[None, :]
    y = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y + total, mask=mask)


def add_lora_(
    y: Tensor, x: Tensor, sizes: Sequence[int], segments: Segments, changes: Sequence[Change | None], words: Tensor
) -> None:
    rows, adapter = segments
    (tokens, k), spans = x.shape, triton.cdiv(x.shape[1], _SPAN)
    widest = max(len(change.a) for change in changes if change is not None)
    low = torch.empty((spans, tokens, triton.cdiv(widest, 16) * 16), dtype=torch.float32, device=x.device)
    where = {"WIDTH": low.shape[2], "TILE": TILE, "PRECISION": "tf32x3" if x.dtype == torch.float32 else "ieee"}
    _shrink_kernel[len(adapter), low.shape[2] // 16, spans](
        x, low, rows, adapter, words, tokens, x.stride(0), words.stride(0),
        K=k, SPAN=_SPAN, BLOCK_R=16, BLOCK_K=128, num_warps=4, num_stages=3, **where,
    )  # fmt: skip
    _expand_kernel[len(adapter), triton.cdiv(max(sizes), 64), len(sizes)](
        y, low, rows, adapter, words, tokens, y.stride(0), words.stride(0), *sizes, *[0] * (3 - len(sizes)),
        SPANS=spans, BLOCK_N=64, BLOCK_R=16, num_warps=4, num_stages=2, **where,
    )  # fmt: skip
