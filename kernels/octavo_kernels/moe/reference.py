"""Mixture of experts in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.activation.reference import silu_mul
from octavo_kernels.linear.quantized import QuantizedWeight, rows_of


def route(
    scores: Tensor,
    num_chosen: int,
    *,
    normalise: bool,
    scoring: str = "softmax",
    choice_bias: Tensor | None = None,
    groups: tuple[int, int] = (0, 0),
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    probabilities = scores.float().softmax(-1) if scoring == "softmax" else scores.float().sigmoid()
    choice = probabilities if choice_bias is None else probabilities + choice_bias
    if groups[0] > 1:
        choice = _keep_groups(choice, *groups, by=1 if choice_bias is None else 2)
    # Not topk, which leaves open which of equals it takes
    experts = torch.sort(choice, dim=-1, descending=True, stable=True).indices[:, :num_chosen]
    shares = probabilities.gather(-1, experts)
    shares = shares / shares.sum(-1, keepdim=True) if normalise else shares
    return shares * scale, experts.int()


def _keep_groups(choice: Tensor, count: int, kept: int, by: int) -> Tensor:
    """-inf for the experts of all but the best groups: those with the largest sum of their `by` best."""
    grouped = choice.view(len(choice), count, -1)
    best = grouped.sort(-1, descending=True).values[..., :by].sum(-1)
    chosen = torch.sort(best, dim=-1, descending=True, stable=True).indices[:, :kept]
    hidden = torch.ones_like(best, dtype=torch.bool).scatter(-1, chosen, value=False)
    return grouped.masked_fill(hidden[..., None], -torch.inf).view(choice.shape)


def moe(
    x: Tensor,
    shares: Tensor,
    experts: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    num_experts: int,
    *,
    biases: tuple[Tensor, Tensor] | None = None,
    limit: float | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    width, inner = x.shape[1], down.shape[1]
    for expert in range(num_experts):
        tokens, place = torch.where(experts == expert)
        if len(tokens):
            first, last = (None, None) if biases is None else (b.view(num_experts, -1)[expert] for b in biases)
            hidden = activate(F.linear(x[tokens], _rows(gate_up, expert, 2 * inner, x.dtype), first), limit)
            result = F.linear(hidden, _rows(down, expert, width, x.dtype), last)
            out.index_add_(0, tokens, result.float() * shares[tokens, place, None])
    return out.to(x.dtype)


def activate(x: Tensor, limit: float | None) -> Tensor:
    """[T, 2 I] of gate and up -> [T, I]."""
    if limit is None:
        return silu_mul(x)
    gate, up = x.chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * (1.702 * gate).sigmoid())


def _rows(weight: Tensor | QuantizedWeight, expert: int, count: int, dtype: torch.dtype) -> Tensor:
    """The matrix of one expert, dequantised to `dtype`."""
    rows = slice(expert * count, (expert + 1) * count)
    return weight[rows] if isinstance(weight, Tensor) else rows_of(weight, rows).dequantize(dtype)
