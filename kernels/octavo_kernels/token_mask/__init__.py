"""Forbid tokens by a bit mask per row: their logits become -inf. `reference.py` is the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo_kernels.native import library

if TYPE_CHECKING:
    from torch import Tensor


def mask_tokens_(
    logits: npt.NDArray[np.float32], logits_row: npt.NDArray[np.int64], masks: npt.NDArray[np.uint32]
) -> None:
    """Write -inf to the logits of all tokens whose bit is not set, in place.

    Args:
        logits: [L, V] contiguous.
        logits_row: [M] index of each mask's logits, none twice.
        masks: [M, W] contiguous, a bit per token, the lowest bit of a word first. Bits beyond V are not read; tokens
            beyond 32 W are forbidden.
    """
    if library.library() is None:
        import torch

        tensors = (torch.from_numpy(x) for x in (logits, logits_row, masks.view(np.int32)))
        return mask_tensors_(*tensors)
    vocab, words = logits.shape[1], masks.shape[1]
    library.call("mask_tokens", logits, vocab, len(masks), np.ascontiguousarray(logits_row, np.int64), masks, words)
    return None


def mask_tensors_(logits: Tensor, logits_row: Tensor, masks: Tensor) -> None:
    """As `mask_tokens_`.

    Args:
        logits: [L, V] of a float type, rows contiguous.
        logits_row: [M] int64, none twice.
        masks: [M, W] int32 with the unsigned words' bits, contiguous.
    """
    from octavo_kernels.dispatch import backend  # imports torch, which the native decoder does not need
    from octavo_kernels.token_mask import reference

    backend(reference.mask_tokens_, logits, cpu=False)(logits, logits_row, masks)
