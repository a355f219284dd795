"""Masks of tokens in Triton: one program per run of `BLOCK` tokens of a row, which only writes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _mask_kernel(logits_ptr, logits_row_ptr, masks_ptr, vocab, stride, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(masks_ptr + row * words + token // 32, mask=token // 32 < words, other=0)
    is_forbidden = ((word >> (token % 32)) & 1) == 0
    base = logits_ptr + tl.load(logits_row_ptr + row) * stride
    tl.store(base + token, float("-inf"), mask=is_forbidden & (token < vocab))


def mask_tokens_(logits: Tensor, logits_row: Tensor, masks: Tensor) -> None:
    vocab, words = logits.shape[1], masks.shape[1]
    grid = (len(masks), triton.cdiv(vocab, BLOCK))
    _mask_kernel[grid](logits, logits_row, masks, vocab, logits.stride(0), words, BLOCK=BLOCK)
