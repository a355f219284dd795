"""RMS norm in Triton: one program per row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normalise(x, weight_ptr, column, mask, dim, eps):
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / dim + eps)
    return x * scale * tl.load(weight_ptr + column, mask=mask, other=0.0)


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, stride_token, stride_head, num_heads, dim, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < dim
    start = (row // num_heads) * stride_token + (row % num_heads) * stride_head
    x = tl.load(x_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * dim + column, _normalise(x, weight_ptr, column, mask, dim, eps), mask=mask)


@triton.jit
def _add_rms_norm_kernel(x_ptr, residual_ptr, weight_ptr, out_ptr, total_ptr, dim, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * dim
    column = tl.arange(0, BLOCK)
    mask = column < dim
    x = tl.load(x_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
    total = (x + residual).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + start + column, total, mask=mask)
    out = _normalise(total.to(tl.float32), weight_ptr, column, mask, dim, eps)
    tl.store(out_ptr + start + column, out, mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    dim = x.shape[-1]
    # Heads of a fused projection are a strided view: their two strides save a copy.
    rows = x if x.ndim == 3 and x.stride(2) == 1 else x.reshape(-1, 1, dim).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (rows.shape[0] * rows.shape[1],)
    block, warps = _block(dim)
    _rms_norm_kernel[grid](
        rows, weight, out, rows.stride(0), rows.stride(1), rows.shape[1], dim, eps, BLOCK=block, num_warps=warps
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dim = x.shape[-1]
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    block, warps = _block(dim)
    _add_rms_norm_kernel[(x.numel() // dim,)](x, residual, weight, out, total, dim, eps, BLOCK=block, num_warps=warps)
    return out, total


def _block(dim: int) -> tuple[int, int]:
    """Row length as a power of two, and warps for some eight values per thread."""
    block = triton.next_power_of_2(dim)
    return block, min(16, max(1, block // 256))
