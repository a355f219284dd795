"""A linear layer in Triton with one tile shape for any number of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows"])
def _fixed_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,  # or None
    out_ptr,
    rows,
    stride_x,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    known_row, known_column = row < rows, column < N
    inner = tl.arange(0, BLOCK_K)
    x_row_ptr = x_ptr + row.to(tl.int64)[:, None] * stride_x
    weight_row_ptr = weight_ptr + column.to(tl.int64)[:, None] * K
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + inner
        x = tl.load(x_row_ptr + k[None, :], mask=known_row[:, None] & (k < K)[None, :], other=0.0)
        weight = tl.load(weight_row_ptr + k[None, :], mask=known_column[:, None] & (k < K)[None, :], other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask=known_column, other=0.0).to(tl.float32)[None, :]
    mask = known_row[:, None] & known_column[None, :]
    tl.store(out_ptr + row.to(tl.int64)[:, None] * N + column[None, :], total, mask=mask)


def fixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, (n, k) = len(x), weight.shape
    wide = x.dtype == torch.float32
    # 64 rows: a multiple of what the widest matrix instruction takes, and not too many for a decode step. Narrow
    # weights get narrow tiles, so that a decode step has enough programs.
    block_m, block_n = 64, 64 if n <= 8192 or wide else 128
    out = torch.empty((rows, n), dtype=x.dtype, device=x.device)
    _fixed_linear_kernel[triton.cdiv(rows, block_m), triton.cdiv(n, block_n)](
        x, weight, bias, out, rows, x.stride(0),
        N=n, K=k, PRECISION="tf32x3" if wide else "ieee", BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=32 if wide else 64,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
