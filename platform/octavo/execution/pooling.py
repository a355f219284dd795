"""Vectors of a decoder's prompts: which states of a step they need, and what becomes of these.

A prompt may take several steps. The sum of its states is in fixed point, so that a mean has the same bits however the
prompt was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.step import Float32, Int64, PooledRow, StepBatch

Head = Callable[[Float32], Float32]
"""Vectors [R, D] -> [R, ...], each row by itself."""

_ONE = 2.0**32
_LARGEST = 2.0**20
"""A state beyond this is broken: the sum of 2,048 such would not fit. Final norms leave values of a few hundred."""


def pooled_tokens(batch: StepBatch) -> Int64:
    """The flat tokens of a step whose states are wanted, in the order of `StepBatch.pooled`."""
    return np.array([token for row in batch.pooled for token in _tokens(batch, row)], np.int64)


def _tokens(batch: StepBatch, row: PooledRow) -> Sequence[int]:
    first, end = batch.query_start[row.row : row.row + 2].tolist()
    match row.method:
        case "mean":
            return range(first, end)
        case "cls":
            return range(first, first + (row.start == 0))
        case "last":
            return range(end - row.is_last, end)


def pool(batch: StepBatch, states: Float32, head: Head | None = None) -> dict[int, Float32]:
    """`StepResult.pooled`.

    Args:
        states: [tokens of `pooled_tokens`, D] after the final norm.
        head: what follows pooling, if anything does.
    """
    place, vectors = 0, dict[int, Float32]()
    for row in batch.pooled:
        count = len(_tokens(batch, row))
        _take(row, states[place : place + count])
        if row.is_last:
            vectors[row.row] = _vector(row, int(batch.context_lens[row.row]))
        place += count
    if head is None or not vectors:
        return vectors
    return dict(zip(vectors, head(np.stack([*vectors.values()])), strict=True))


def _take(row: PooledRow, states: Float32) -> None:
    """Add the states of a step to those before."""
    so_far = row.so_far
    if row.method == "mean":
        before = 0 if row.start == 0 or so_far.value is None else so_far.value
        so_far.value = before + _sum(states)
    elif len(states):
        so_far.value = states[0].copy()


def _sum(states: Float32) -> npt.NDArray[Any]:
    """[T, D] -> [D] in units of 2^-32; NaN where one is broken, and it stays so whatever is added."""
    if not (np.abs(states) < _LARGEST).all():
        return np.full(states.shape[1], np.nan)
    total: Int64 = np.rint(states.astype(np.float64) * _ONE).astype(np.int64).sum(0)
    return total


def _vector(row: PooledRow, length: int) -> Float32:
    value = row.so_far.value
    assert value is not None, "a prompt's first step begins it"
    if row.method == "mean":
        value = value.astype(np.float64) / (_ONE * length)
    return value.astype(np.float32)
