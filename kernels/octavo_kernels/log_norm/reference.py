"""Logarithms of sums in plain PyTorch, a row at a time: the shape of each sum is the same in any company."""

from __future__ import annotations

import torch
from torch import Tensor


def log_norms(logits: Tensor, logits_row: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    picked = logits[logits_row]
    norms = [row.double().logsumexp(-1).float() for row in picked]
    own = picked.gather(-1, tokens[:, None])
    return torch.stack(norms) if norms else picked.new_zeros(0), 1 + (picked > own).sum(-1)
