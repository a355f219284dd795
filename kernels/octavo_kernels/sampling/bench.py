"""Cases of sampling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from octavo_kernels.sampling import sample_tensors
from octavo_kernels.timing import Bench, Case


def _sorted_top_p(logits: Tensor) -> Tensor:
    values, order = logits.softmax(-1).sort(dim=-1, descending=True)
    kept = values.masked_fill(values.cumsum(-1) - values >= 0.9, 0)
    return order.gather(-1, kept.multinomial(1))


def cases(bench: Bench) -> Iterator[Case]:
    """Top-p over a large vocabulary, beside sorting it; on a GPU only, because the CPU's sampler takes arrays."""
    for rows in bench.size.rows if bench.device != "cpu" else ():
        logits = torch.randn(rows, 128_256, device=bench.device) * 3
        ones, numbers = torch.ones(rows, device=bench.device), torch.arange(rows, device=bench.device)
        columns = (ones, torch.zeros_like(numbers, dtype=torch.int32), 0.9 * ones, 0 * ones, numbers, numbers)
        yield Case(
            "sampling",
            f"{rows} x 128256, top_p",
            partial(sample_tensors, logits, numbers, *columns),
            logits.nbytes,
            rivals={"torch_sort": partial(_sorted_top_p, logits)},
        )
