"""Cases of log probabilities' norms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from octavo_kernels.log_norm import log_norm_tensors
from octavo_kernels.timing import Bench, Case


def _case(bench: Bench, rows: int) -> Case:
    logits = torch.randn(rows, 151_936, device=bench.device)
    numbers = torch.arange(rows, device=bench.device)
    run = partial(log_norm_tensors, logits, numbers, numbers)
    return Case("log_norm", f"{rows} x 151936", run, logits.nbytes, rivals={"torch": partial(logits.logsumexp, -1)})


def cases(bench: Bench) -> Iterator[Case]:
    """A decoding step's rows."""
    return (_case(bench, rows) for rows in bench.size.rows if rows <= 64)
