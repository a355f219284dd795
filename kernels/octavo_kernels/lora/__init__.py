"""LoRA (Hu et al. 2021): what adapters add to a matrix's product, for rows of many adapters beside each other.

The native decoder has code of its own (`cpu.h`), which `packed.py` lays matrices out for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from octavo_kernels.lora.segments import Change, Segments


def add_lora_(
    y: Tensor, x: Tensor, sizes: Sequence[int], segments: Segments, changes: Sequence[Change | None], words: Tensor
) -> None:
    """Adds (x A^T) B^T to a matrix's product, in place, for the rows that have adapters.

    On a GPU A x is rounded to the matrices' type before B, and a row's bits do not depend on the other rows.

    Args:
        y: [T, N] of a float type, its rows contiguous: the product without adapters.
        x: [T, K] likewise: its input.
        sizes: columns of each of its parts, N together; three parts at most.
        segments: the rows of each adapter.
        changes: of each adapter, in the type of x on a GPU, in float32 elsewhere; None: it does not change this matrix.

        words: [adapters, WORDS] int64, each one's contiguous: those of `changes`, 0 where there is none.

    Raises:
        ValueError: shapes or types do not fit.
    """
    from octavo_kernels.dispatch import backend, check_floats  # torch, which the native decoder does not need
    from octavo_kernels.lora import reference

    check_floats(x=x, y=y)
    if sum(sizes) != y.shape[1] or len(y) != len(x) or x.stride(1) != 1 or y.stride(1) != 1:
        raise ValueError(f"x {tuple(x.shape)}, y {tuple(y.shape)} with contiguous rows, and parts of {list(sizes)}")
    if any(change is not None for change in changes):
        backend(reference.add_lora_, x, cpu=False)(y, x, sizes, segments, changes, words)
