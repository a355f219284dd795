"""What turns logits into log probabilities, row by row: a row's bits depend on nothing but the row.

`torch.logsumexp` gives other bits for [1, V] than for one of [R, V]: it splits a single row among threads. Here the
order of a row's sum is fixed by V alone, in each back end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo_kernels.native.library import call

if TYPE_CHECKING:
    from torch import Tensor


def log_norms(
    logits: npt.NDArray[np.float32], logits_row: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Per row the logarithm of the sum of e^logit, and the rank of a token.

    Args:
        logits: [L, V] contiguous.
        logits_row: [R] index of each row's logits.
        tokens: [R] in [0, V).

    Returns:
        [R] the logarithm, and [R] the rank: 1 + the number of larger logits.

    Raises:
        BuildError: there is no native library.
    """
    norms, ranks = np.empty(len(tokens), np.float32), np.empty(len(tokens), np.int64)
    where, chosen = (np.ascontiguousarray(x, np.int64) for x in (logits_row, tokens))
    call("log_norms", logits, logits.shape[1], len(tokens), where, chosen, norms, ranks)
    return norms, ranks


def log_norm_tensors(logits: Tensor, logits_row: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As `log_norms`, on any device. On a GPU nothing is read back.

    Args:
        logits: [L, V] float32, contiguous.
        logits_row, tokens: [R] int64.
    """
    from octavo_kernels.dispatch import backend  # imports torch, which the native decoder does not need
    from octavo_kernels.log_norm import reference

    return backend(reference.log_norms, logits)(logits, logits_row, tokens)
