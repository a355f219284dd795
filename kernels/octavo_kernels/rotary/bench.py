"""Cases of the rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from octavo_kernels.rotary import rotary_
from octavo_kernels.timing import Bench, Case, for_all_rows, noise


def _rotary(bench: Bench, rows: int) -> Case:
    (heads, kv_heads), dim = bench.size.heads, bench.size.dim
    table, positions = torch.randn(rows, dim, device=bench.device), torch.arange(rows, device=bench.device)
    q, k = noise(bench, rows, heads, dim), noise(bench, rows, kv_heads, dim)
    return Case("rotary", f"{rows} tokens", lambda: rotary_(q, k, positions, table), 2 * (q.nbytes + k.nbytes))


def cases(bench: Bench) -> Iterator[Case]:
    """For each number of rows."""
    return for_all_rows(_rotary, bench)
