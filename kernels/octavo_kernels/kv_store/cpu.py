"""KV store in C++ (`cpu.cpp`)."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.native.library import call


def kv_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: None = None) -> None:
    tokens, heads, dim = k.shape
    for x, cache in ((k, k_cache), (v, v_cache)):
        row, head, value = x.stride(0), x.stride(1), x.element_size()
        call("kv_store", x, tokens, heads, row * value, head * value, dim * value, cache, slots.contiguous())
