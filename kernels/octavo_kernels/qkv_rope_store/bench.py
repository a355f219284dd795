"""Cases of the fused step from projection to cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from octavo_kernels.qkv_rope_store import qkv_rope_store
from octavo_kernels.timing import BLOCK, Bench, Case, for_all_rows, noise


def _qkv_rope_store(bench: Bench, rows: int) -> Case:
    (heads, kv_heads), dim = bench.size.heads, bench.size.dim
    table, positions = torch.randn(rows, dim, device=bench.device), torch.arange(rows, device=bench.device)
    qkv = noise(bench, rows, (heads + 2 * kv_heads) * dim)
    k, v = (noise(bench, -(-rows // BLOCK), BLOCK, kv_heads, dim) for _ in range(2))
    return Case(
        "qkv_rope_store",
        f"{rows} tokens",
        lambda: qkv_rope_store(qkv, k, v, positions, positions, cos_sin=table),
        2 * qkv.nbytes,
    )


def cases(bench: Bench) -> Iterator[Case]:
    """For each number of rows."""
    return for_all_rows(_qkv_rope_store, bench)
