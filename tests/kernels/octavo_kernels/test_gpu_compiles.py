"""The Triton kernels compile to machine code, which needs no GPU: the interpreter accepts more than the compiler does.

Each launch below is what a layer of a real model asks for. The tests compile some of them; docs/gpu.md has the figures
of all, as `python tests/kernels/compile_launches.py tests/kernels/octavo_kernels/test_gpu_compiles.py 90` prints them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo_kernels.lora.segments import Change, Segments, sort_rows
from octavo_kernels.paged_attention import PagedBatch
from octavo_kernels.qkv_rope_store import HeadNorms

BF16, INT8, FLOAT8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes that a program may take, by compute capability."""


def launch(op: str, function: str, *args: Any, **kwargs: Any) -> object:
    return getattr(importlib.import_module(f"octavo_kernels.{op}.gpu"), function)(*args, **kwargs)


def norms_and_gates(dtype: torch.dtype) -> None:
    x, weight = torch.zeros(3, 4096, dtype=dtype), torch.zeros(4096)
    launch("rms_norm", "rms_norm", x, weight, 1e-5)
    launch("rms_norm", "add_rms_norm", x, x, weight, 1e-5)
    launch("activation", "silu_mul", x)
    launch("activation", "gelu_mul", x)


def caches(dtype: torch.dtype, heads: int, dim: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Four blocks of 16, and their scales."""
    scales = torch.zeros(4, 16, heads) if dtype in (INT8, FLOAT8) else None
    return torch.zeros(4, 16, heads, dim).to(dtype), None if scales is None else (scales, scales)


def qkv(dtype: torch.dtype, codes: torch.dtype | None = None) -> None:
    """Between the projection and attention, at once and one by one; 32 query and 8 KV heads of 128."""
    where, table, norms = torch.zeros(3, dtype=torch.int64), torch.zeros(9, 128), HeadNorms(*torch.zeros(2, 128), 1e-5)
    cache, scales = caches(codes or dtype, 8, 128)
    fused = torch.zeros(3, 48, 128, dtype=dtype)
    launch("qkv_rope_store", "qkv_rope_store", fused.flatten(1), cache, cache, where, where, table, None, scales)
    launch("qkv_rope_store", "qkv_rope_store", fused.flatten(1), cache, cache, where, where, table, norms, scales)
    launch("rms_norm", "rms_norm", fused[:, :32], norms.q, 1e-5)
    launch("rotary", "rotary_", fused[:, :32], fused[:, 32:40], where, table)
    launch("kv_store", "kv_store", fused[:, 32:40], fused[:, 40:], cache, cache, where, scales)


def attention(
    queries: int,
    heads: tuple[int, int] = (32, 8),
    dim: int = 128,
    dtype: torch.dtype = BF16,
    codes: torch.dtype | None = None,
    split_keys: int | None = None,
    **kind: Any,
) -> None:
    """A step of two sequences with `queries` tokens each."""
    starts, contexts = np.array([0, 1, 2]) * queries, np.array([1000, 1000])
    batch = PagedBatch.build(starts, contexts, np.zeros((2, 70)), 16, split_keys=split_keys)
    cache, scales = caches(codes or dtype, heads[1], dim)
    q = torch.zeros(2 * queries, heads[0], dim, dtype=dtype)
    launch("paged_attention", "paged_attention", q, cache, cache, batch, scale=1.0, kv_scales=scales, **kind)


def linear(n: int, k: int, dtype: torch.dtype) -> None:
    launch("fixed_linear", "fixed_linear", torch.zeros(3, k, dtype=dtype), torch.zeros(n, k, dtype=dtype))


def adapters(dtype: torch.dtype) -> None:
    """Rank 16 on q, k and v of 4096 columns."""
    sizes, x = (4096, 1024, 1024), torch.zeros(3, 4096, dtype=dtype)
    change = Change.of([(torch.zeros(16, 4096, dtype=dtype), torch.zeros(n, 16, dtype=dtype)) for n in sizes])
    rows = Segments(*(torch.from_numpy(each) for each in sort_rows(np.zeros(3, np.int64))))
    y, words = torch.zeros(3, sum(sizes), dtype=dtype), torch.tensor([change.words])
    launch("lora", "add_lora_", y, x, sizes, rows, [change], words)


def vocabularies() -> None:
    logits, where, bits = torch.zeros(3, 151_936), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4748).int()
    launch("token_mask", "mask_tokens_", logits, where, bits)
    launch("log_norm", "log_norms", logits, where, where)


LAUNCHES: dict[str, Callable[[], object]] = {
    "rows, bfloat16": lambda: norms_and_gates(BF16),
    "rows, float32": lambda: norms_and_gates(torch.float32),
    "vocabularies": vocabularies,
    "qkv, bfloat16": lambda: qkv(BF16),
    "qkv, int8 cache": lambda: qkv(BF16, INT8),
    "qkv, float8 cache": lambda: qkv(BF16, FLOAT8),
    "decode of 128": lambda: attention(1),
    "decode of 128, int8 cache": lambda: attention(1, codes=INT8),
    "decode of 128, float8 cache": lambda: attention(1, codes=FLOAT8),
    "decode of 128, float16, int8 cache": lambda: attention(1, dtype=torch.float16, codes=INT8),
    "decode of 128, batch-invariant": lambda: attention(1, split_keys=512),
    "decode of 64": lambda: attention(1, (32, 8), 64),
    "decode of 80, float16": lambda: attention(1, (32, 32), 80, torch.float16),
    "decode of 256, window, soft cap": lambda: attention(1, (8, 4), 256, window=512, softcap=30.0),
    "decode of 64, float32": lambda: attention(1, (9, 3), 64, torch.float32),
    "chunk of 128": lambda: attention(300),
    "chunk of 128, int8 cache": lambda: attention(300, codes=INT8),
    "chunk of 128, float8 cache": lambda: attention(300, codes=FLOAT8),
    "chunk of 128, batch-invariant": lambda: attention(300, split_keys=512),
    "chunk of 64": lambda: attention(300, (32, 8), 64),
    "chunk of 256, window, soft cap": lambda: attention(300, (8, 4), 256, window=512, softcap=30.0),
    "chunk of 128, ALiBi": lambda: attention(300, (32, 32), alibi_slopes=torch.zeros(32)),
    "chunk of 64, float32": lambda: attention(300, (9, 3), 64, torch.float32),
    "chunk of 128, float32": lambda: attention(300, dtype=torch.float32),
    "adapters, bfloat16": lambda: adapters(BF16),
    "adapters, float32": lambda: adapters(torch.float32),
    "linear of one order, 4096 x 4096": lambda: linear(4096, 4096, BF16),
    "linear of one order, 28672 x 4096": lambda: linear(28672, 4096, BF16),
    "linear of one order, 4096 x 4096, float32": lambda: linear(4096, 4096, torch.float32),
}
TESTED = {
    80: ["decode of 128", "chunk of 128", "decode of 128, float16, int8 cache"],
    90: [
        "rows, bfloat16", "vocabularies", "qkv, float8 cache", "decode of 128", "decode of 128, float8 cache",
        "chunk of 128", "adapters, bfloat16", "chunk of 256, window, soft cap",
    ],
}  # fmt: skip
"""What the tests compile, by compute capability; all of LAUNCHES would take a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", TESTED)
def test_kernels_compile_and_fit_the_gpu(compile_launches, capability: int) -> None:
    found = compile_launches(__file__, capability, *TESTED[capability])
    assert list(found) == TESTED[capability]
    kernels = {(name, kernel.kernel): kernel for name, launched in found.items() for kernel in launched}
    for kernel in kernels.values():
        assert kernel.shared <= SHARED_MEMORY[capability], kernel
        assert kernel.spilled <= 32, kernel  # bytes per thread; some wide tiles lack a few registers
    decode, chunk = (kernels[f"{kind} of 128", f"_{kind}_kernel"] for kind in ("decode", "chunk"))
    assert decode.matrix == "mma"
    assert chunk.matrix == ("wgmma" if capability == 90 else "mma")
    assert min(decode.async_copies, chunk.async_copies) > 3  # keys and values, ahead of the loop and in it
