"""Gated activations in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return F.silu(gate).mul_(up).to(gate_up.dtype)


def gelu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up).to(gate_up.dtype)
