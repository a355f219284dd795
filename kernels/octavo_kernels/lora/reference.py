"""Reference of what LoRA adapters add to a matrix's product."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo_kernels.lora.segments import Change, Segments


def lora(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(x A^T) B^T in float32.

    Args:
        x: [T, in] of any type.
        a: [rank, in] of any type.
        b: [out, rank], times the adapter's scale.

    Returns:
        [T, out] float32.
    """
    return x.float() @ a.float().T @ b.float().T


def add_lora_(
    y: Tensor, x: Tensor, sizes: Sequence[int], segments: Segments, changes: Sequence[Change | None], words: Tensor
) -> None:
    """Adds each part's change to its columns, in place; see `octavo_kernels.lora.add_lora_`."""
    tiles = segments.rows.view(len(segments.adapter), -1)
    for index, change in enumerate(changes):
        if change is None:
            continue
        rows = tiles[segments.adapter == index].flatten()
        rows = rows[rows >= 0].long()
        for part, (a, b) in change.pairs():
            columns = slice(sum(sizes[:part]), sum(sizes[: part + 1]))
            y[rows, columns] = (y[rows, columns].float() + lora(x[rows], a, b)).to(y.dtype)
