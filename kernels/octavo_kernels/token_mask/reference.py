"""Masks of tokens in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_tokens_(logits: Tensor, logits_row: Tensor, masks: Tensor) -> None:
    vocab = logits.shape[1]
    allowed = logits.new_zeros(len(masks), max(vocab, 32 * masks.shape[1]), dtype=torch.bool)
    place = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed[:, : 32 * masks.shape[1]] = (masks[:, :, None] >> place & 1).bool().flatten(1)
    logits.index_copy_(0, logits_row, logits[logits_row].masked_fill(~allowed[:, :vocab], -torch.inf))
