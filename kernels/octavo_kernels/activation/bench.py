"""Cases of the gated activation."""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn import functional as F  # noqa: N812

from octavo_kernels.activation import silu_mul
from octavo_kernels.timing import Bench, Case, for_all_rows, noise


def _silu_mul(bench: Bench, rows: int) -> Case:
    inner = bench.size.inner
    x = noise(bench, rows, 2 * inner)
    return Case(
        "silu_mul",
        f"{rows} x {2 * inner}",
        lambda: silu_mul(x),
        x.nbytes * 3 // 2,
        rivals={"torch": lambda: F.silu(x[:, :inner]) * x[:, inner:]},
    )


def cases(bench: Bench) -> Iterator[Case]:
    """For each number of rows."""
    return for_all_rows(_silu_mul, bench)
