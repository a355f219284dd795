"""Cases of RMS norm with the residual addition."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.rms_norm import add_rms_norm
from octavo_kernels.timing import Bench, Case, for_all_rows, noise


def _add_rms_norm(bench: Bench, rows: int) -> Case:
    hidden = bench.size.hidden
    x, residual = noise(bench, rows, hidden), noise(bench, rows, hidden)
    weight = torch.ones(hidden, device=bench.device)
    return Case(
        "add_rms_norm",
        f"{rows} x {hidden}",
        lambda: add_rms_norm(x, residual, weight, 1e-5),
        4 * x.nbytes,
        rivals={"torch": lambda: F.rms_norm(x + residual, (hidden,), weight.to(x.dtype), 1e-5)},
    )


def cases(bench: Bench) -> Iterator[Case]:
    """For each number of rows."""
    return for_all_rows(_add_rms_norm, bench)
