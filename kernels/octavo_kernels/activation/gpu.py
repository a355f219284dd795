"""Gated activations in Triton: one program per run of `BLOCK` values of a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _gate(x, GELU: tl.constexpr):
    if GELU:
        # 0.5 x (1 + tanh(u)) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3): Triton has no tanh of its own.
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x * tl.sigmoid(x)


@triton.jit
def _gated_kernel(gate_up_ptr, out_ptr, stride_token, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gate_ptr = gate_up_ptr + token * stride_token + column
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * width + column, _gate(gate, GELU) * up, mask=mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    return _launch(gate_up, gelu=False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    return _launch(gate_up, gelu=True)


def _launch(gate_up: Tensor, *, gelu: bool) -> Tensor:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    grid = (tokens, triton.cdiv(width, BLOCK))
    _gated_kernel[grid](gate_up, out, gate_up.stride(0), width, GELU=gelu, BLOCK=BLOCK)
    return out
