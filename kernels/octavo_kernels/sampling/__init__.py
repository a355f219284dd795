"""Sample tokens from logits. `reference.py` is the definition; the C++ and Triton versions do not sort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo_kernels.native.library import call

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    logits: Tensor | npt.NDArray[np.float32],
    logits_row: npt.NDArray[np.int64],
    temperature: npt.NDArray[np.float32],
    top_k: npt.NDArray[np.int32],
    top_p: npt.NDArray[np.float32],
    min_p: npt.NDArray[np.float32],
    seed: npt.NDArray[np.uint64],
    position: npt.NDArray[np.int64],
    masks: npt.NDArray[np.uint32] | None = None,
    masked: npt.NDArray[np.int32] | None = None,
) -> npt.NDArray[np.int64]:
    """One token per row.

    Args:
        logits: [L, V] float32, contiguous, on the CPU.
        logits_row: [R] index of each row's logits.
        temperature, top_k, top_p, min_p, seed, position: [R], as in `octavo.step.SamplingRows`.
        masks, masked: [M, W] and [M], as there. They are read beside the logits: what would be drawn from logits that
            `token_mask` has written to is drawn, and chunks of which no token is allowed are not read.

    Returns:
        [R] token ids; -1 where the largest logit is not finite.

    Raises:
        BuildError: there is no native library.
    """
    out = np.empty(len(logits_row), np.int64)
    types = (np.int64, np.float32, np.int32, np.float32, np.float32, np.uint64, np.int64)
    values = (logits_row, temperature, top_k, top_p, min_p, seed, position)
    arrays: list[npt.NDArray[Any]] = [np.ascontiguousarray(x, t) for x, t in zip(values, types, strict=True)]
    own = None
    if masks is not None and masked is not None:
        own = np.full(len(logits_row), -1, np.int32)
        own[masked] = np.arange(len(masked), dtype=np.int32)
        masks = np.ascontiguousarray(masks)
    words = 0 if masks is None else masks.shape[1]
    call("sample", logits, logits.shape[1], len(logits_row), *arrays, own, masks, words, out)
    return out


def sample_tensors(
    logits: Tensor,
    logits_row: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    """One token per row. On a GPU the number of launches is fixed, and nothing is read back.

    Args:
        logits: [L, V] of a float type, rows contiguous.
        logits_row: [R] int64 index of each row's logits.
        temperature, top_p, min_p: [R] float32, as in `octavo.step.SamplingRows`.
        top_k: [R] int32.
        seed: [R] int64, the bits of the unsigned number.
        position: [R] int64.

    Returns:
        [R] int64; -1 where the largest logit is not finite.
    """
    from octavo_kernels.dispatch import backend  # imports torch, which the native decoder does not need
    from octavo_kernels.sampling import reference

    run = backend(reference.sample, logits, cpu=False)
    return run(logits, logits_row, temperature, top_k, top_p, min_p, seed, position)
