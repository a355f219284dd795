"""Cases of the KV store."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from octavo_kernels.kv_store import kv_store
from octavo_kernels.timing import BLOCK, Bench, Case, for_all_rows, noise


def _kv_store(bench: Bench, rows: int) -> Case:
    (_, kv_heads), dim = bench.size.heads, bench.size.dim
    k, v = noise(bench, rows, kv_heads, dim), noise(bench, rows, kv_heads, dim)
    caches = [noise(bench, -(-rows // BLOCK), BLOCK, kv_heads, dim) for _ in range(2)]
    slots = torch.randperm(rows, device=bench.device)
    return Case("kv_store", f"{rows} tokens", lambda: kv_store(k, v, caches[0], caches[1], slots), 4 * k.nbytes)


def cases(bench: Bench) -> Iterator[Case]:
    """For each number of rows."""
    return for_all_rows(_kv_store, bench)
