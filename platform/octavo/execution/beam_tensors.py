"""What may follow a beam, on any device; see `octavo.execution.beam_candidates`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octavo.execution.beam_candidates import rows_alone
from octavo.execution.tensor_treatment import apply_treatment
from octavo.execution.transfer import fetch, to_device
from octavo.step import Candidates, Int64, SamplingRows
from octavo_kernels.log_norm import log_norm_tensors

_Found = Callable[[], dict[int, Candidates]]


def begin_candidates(logits: Tensor, logits_row: Int64, rows: SamplingRows) -> _Found:
    """Those of all rows that want some, without waiting for the device; of rows that are not finite they mean nothing.

    Args:
        logits: [L, V] float32, as the model gave them; not changed.
        logits_row: [R] which of the L each row is of.
    """
    wanted = [*rows.beams]
    own = logits[to_device(logits_row[wanted], logits.device)]
    each = torch.arange(len(wanted), device=own.device)
    own = own - log_norm_tensors(own, each, own.argmax(-1))[0][:, None]
    scores, alone = own, rows_alone(rows, wanted)
    if alone.are_treated:
        apply_treatment(scores := own.clone(), alone, None)
    count = min(max(rows.beams.values()), own.shape[-1])
    top = scores.topk(count, dim=-1)
    logprobs = own.gather(-1, top.indices)
    ranks = _ranks(own, logprobs) if alone.are_treated else torch.arange(1, count + 1).expand(len(wanted), -1)
    wait = fetch(top.indices, top.values, logprobs, ranks.to(own.device))

    def finish() -> dict[int, Candidates]:
        ids, values, plain, places = wait()
        found = {}
        for i, row in enumerate(wanted):
            kept = np.flatnonzero(values[i][: rows.beams[row]] > -np.inf)
            columns = (column[i][kept] for column in (ids, values, plain, places))
            found[row] = Candidates(*columns)
        return found

    return finish


def _ranks(own: Tensor, values: Tensor) -> Tensor:
    """[B, K] of values among their rows [B, V], one column at a time: B x K x V would be gigabytes."""
    return torch.stack([(own > value[:, None]).sum(-1) + 1 for value in values.unbind(-1)], dim=-1)
