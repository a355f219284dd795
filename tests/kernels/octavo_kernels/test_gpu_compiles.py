"""The Triton kernels compile to machine code, which needs no GPU: the interpreter accepts more than the compiler does.

Each launch below is what a layer of a real model asks for. docs/gpu.md has the figures; print them with
`python tests/kernels/compile_launches.py tests/kernels/octavo_kernels/test_gpu_compiles.py 90`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo_kernels.paged_attention import PagedBatch

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes that a program may take, by compute capability."""


def launch(op: str, function: str, *args: Any, **kwargs: Any) -> object:
    return getattr(importlib.import_module(f"octavo_kernels.{op}.gpu"), function)(*args, **kwargs)


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def rows(dtype: torch.dtype) -> None:
    """The kernels of a token's row, for heads of a fused projection."""
    x, heads, weight = tensor(3, 4096, dtype=dtype), tensor(3, 48, 128, dtype=dtype), torch.empty(4096)
    launch("rms_norm", "rms_norm", x, weight, 1e-5)
    launch("rms_norm", "rms_norm", heads[:, :32], torch.empty(128), 1e-5)
    launch("rms_norm", "add_rms_norm", x, x, weight, 1e-5)
    launch("activation", "silu_mul", x)
    launch("activation", "gelu_mul", x)
    slots = torch.zeros(3, dtype=torch.int64)
    launch("rotary", "rotary_", heads[:, :32], heads[:, 32:40], slots, torch.empty(10, 128))
    cache = tensor(2, 16, 8, 128, dtype=dtype)
    launch("kv_store", "kv_store", heads[:, 32:40], heads[:, 40:], cache, cache, slots)


def attention(queries: int, heads: tuple[int, int], dim: int, dtype: torch.dtype, **kind: Any) -> None:
    """A step of two sequences with `queries` tokens each."""
    starts, contexts = np.array([0, 1, 2]) * queries, np.array([1000, 1000])
    batch = PagedBatch.build(starts, contexts, np.zeros((2, 70)), 16)
    q, cache = tensor(2 * queries, heads[0], dim, dtype=dtype), tensor(2, 16, heads[1], dim, dtype=dtype)
    launch("paged_attention", "paged_attention", q, cache, cache, batch, scale=1.0, **kind)


LAUNCHES: dict[str, Callable[[], object]] = {
    "rows bfloat16": lambda: rows(torch.bfloat16),
    "rows float32": lambda: rows(torch.float32),
    "decode": lambda: attention(1, (32, 8), 128, torch.bfloat16),
    "chunk": lambda: attention(300, (32, 8), 128, torch.bfloat16),
    "chunk gemma": lambda: attention(300, (8, 4), 256, torch.bfloat16, window=512, softcap=30.0),
    "decode of 80": lambda: attention(1, (32, 32), 80, torch.float16),
    "chunk float32": lambda: attention(300, (9, 3), 64, torch.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_and_fit_the_gpu(compile_launches, capability: int) -> None:
    found = compile_launches(__file__, capability)
    assert found.keys() == LAUNCHES.keys()
    for kernel in (kernel for kernels in found.values() for kernel in kernels):
        assert kernel.shared <= SHARED_MEMORY[capability], kernel
