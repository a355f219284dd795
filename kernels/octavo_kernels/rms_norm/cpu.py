"""RMS norm in C++ (`cpu.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.native.library import call, type_code


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = x if x.ndim == 3 and x.stride(2) == 1 else x.contiguous().view(-1, 1, x.shape[-1])
    count, heads, dim = rows.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    strides = rows.stride(0), rows.stride(1)
    call("rms_norm", type_code(x), rows, count, heads, *strides, dim, weight.contiguous(), float(eps), out)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, residual = x.contiguous(), residual.contiguous()
    out, total, dim = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
    rows = x.numel() // dim if dim else 0
    call("add_rms_norm", type_code(x), x, residual, rows, dim, weight.contiguous(), float(eps), out, total)
    return out, total
