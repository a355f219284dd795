"""Mixture of experts in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.activation.reference import silu_mul
from octavo_kernels.linear.quantized import QuantizedWeight, rows_of


def route(scores: Tensor, num_chosen: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
    probabilities = scores.float().softmax(-1)
    # Not topk, which leaves open which of equals it takes
    experts = torch.sort(probabilities, dim=-1, descending=True, stable=True).indices[:, :num_chosen]
    shares = probabilities.gather(-1, experts)
    return shares / shares.sum(-1, keepdim=True) if normalise else shares, experts.int()


def moe(
    x: Tensor,
    shares: Tensor,
    experts: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    num_experts: int,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    width, inner = x.shape[1], down.shape[1]
    for expert in range(num_experts):
        tokens, place = torch.where(experts == expert)
        if len(tokens):
            hidden = silu_mul(F.linear(x[tokens], _rows(gate_up, expert, 2 * inner, x.dtype)))
            result = F.linear(hidden, _rows(down, expert, width, x.dtype))
            out.index_add_(0, tokens, result.float() * shares[tokens, place, None])
    return out.to(x.dtype)


def _rows(weight: Tensor | QuantizedWeight, expert: int, count: int, dtype: torch.dtype) -> Tensor:
    """The matrix of one expert, dequantised to `dtype`."""
    rows = slice(expert * count, (expert + 1) * count)
    return weight[rows] if isinstance(weight, Tensor) else rows_of(weight, rows).dequantize(dtype)
