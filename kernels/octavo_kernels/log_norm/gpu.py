"""Logarithms of sums in Triton: one program per row, whose sum runs over the vocabulary in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096


@triton.jit
def _log_norm_kernel(logits_ptr, logits_row_ptr, tokens_ptr, norms_ptr, ranks_ptr, vocab, stride, CHUNK: tl.constexpr):
    row = tl.program_id(0)
    base = logits_ptr + tl.load(logits_row_ptr + row) * stride
    own = tl.load(base + tl.load(tokens_ptr + row))
    peak, rank = own, 1
    for start in range(0, vocab, CHUNK):
        token = start + tl.arange(0, CHUNK)
        x = tl.load(base + token, mask=token < vocab, other=float("-inf"))
        peak = tl.maximum(peak, tl.max(x, axis=0))
        rank += tl.sum((x > own).to(tl.int32), axis=0)
    total = tl.sum(tl.zeros([CHUNK], tl.float64), axis=0)
    for start in range(0, vocab, CHUNK):
        token = start + tl.arange(0, CHUNK)
        x = tl.load(base + token, mask=token < vocab, other=float("-inf"))
        total += tl.sum(tl.exp(x - peak).to(tl.float64), axis=0)
    tl.store(norms_ptr + row, (peak.to(tl.float64) + tl.log(total)).to(tl.float32))
    tl.store(ranks_ptr + row, rank)


def log_norms(logits: Tensor, logits_row: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    rows, vocab = len(tokens), logits.shape[1]
    norms = torch.empty(rows, dtype=torch.float32, device=logits.device)
    ranks = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        places = logits_row, tokens, norms, ranks
        _log_norm_kernel[(rows,)](logits, *places, vocab, logits.stride(0), CHUNK=CHUNK, num_warps=8)
    return norms, ranks
