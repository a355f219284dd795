"""Logarithms of sums in C++ (`cpu.cpp`)."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.native.library import call


def log_norms(logits: Tensor, logits_row: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    norms, ranks = logits.new_empty(len(tokens)), tokens.new_empty(len(tokens))
    rows, vocab = logits.contiguous(), logits.shape[1]
    call("log_norms", rows, vocab, len(tokens), logits_row.contiguous(), tokens.contiguous(), norms, ranks)
    return norms, ranks
