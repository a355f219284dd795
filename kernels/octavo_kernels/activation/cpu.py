"""Gated activations in C++ (`cpu.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.native.library import call, type_code


def silu_mul(gate_up: Tensor) -> Tensor:
    return _gate(0, gate_up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    return _gate(1, gate_up)


def _gate(kind: int, gate_up: Tensor) -> Tensor:
    rows, inner = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=gate_up.dtype)
    call("activation", type_code(gate_up), kind, gate_up, rows, gate_up.stride(0), inner, out)
    return out
