"""Rotary embedding in C++ (`cpu.cpp`)."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.native.library import call, type_code


def rotary_(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    places, table = positions.long().contiguous(), cos_sin.contiguous()
    for x in (q, k):
        tokens, heads, _ = x.shape
        strides = x.stride(0), x.stride(1)
        call("rotary", type_code(x), x, tokens, heads, *strides, places, table, table.shape[1])
