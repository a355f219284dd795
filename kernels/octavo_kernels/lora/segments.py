"""The rows of a step by adapter, and an adapter's change of one matrix, as the kernel finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TILE = 16
"""Rows that a program takes: the fewest that matrix instructions do."""

PARTS = 3
"""Of a matrix, at most: q, k and v."""

WORDS = 2 + 3 * PARTS
"""That tell the kernel where an adapter's change of a matrix is."""


class Segments(NamedTuple):
    """Rows sorted by adapter in tiles of one adapter each."""

    rows: Tensor  # [tiles TILE] int32; -1: none
    adapter: Tensor  # [tiles] int32 index of each tile's adapter


class Change(NamedTuple):
    """One adapter's change of a matrix whose parts lie one below the other."""

    a: Tensor  # [sum of the ranks, in]: the parts' A's in order
    b: tuple[Tensor | None, ...]  # of each part [out, rank], times the scale; None: it is not changed

    @staticmethod
    def of(parts: Sequence[tuple[Tensor, Tensor] | None]) -> Change:
        """Args: A [rank, in] and B [out, rank] of each part, of one type, one device, and not all None."""
        a = torch.cat([part[0] for part in parts if part is not None])
        return Change(a, tuple(None if part is None else part[1].contiguous() for part in parts))

    @property
    def words(self) -> list[int]:
        """`WORDS` words: address and rows of A; of each part B's address, its rank, its first row of A."""
        words, first = [self.a.data_ptr(), len(self.a)], 0
        for b in self.b:
            words += [0, 0, 0] if b is None else [b.data_ptr(), b.shape[1], first]
            first += 0 if b is None else b.shape[1]
        return words + [0] * (WORDS - len(words))

    @property
    def nbytes(self) -> int:
        """Of A and B."""
        return self.a.nbytes + sum(b.nbytes for b in self.b if b is not None)

    def pairs(self) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """The parts that are changed, with A and B of each."""
        first = 0
        for part, b in enumerate(self.b):
            if b is not None:
                yield part, (self.a[first : first + b.shape[1]], b)
                first += b.shape[1]


def sort_rows(adapter: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The arrays of `Segments`.

    Args:
        adapter: of each row its adapter's index, or -1.
    """
    rows, adapters = list[npt.NDArray[np.int32]](), list[npt.NDArray[np.int32]]()
    for index in range(int(adapter.max(initial=-1)) + 1):
        mine = np.flatnonzero(adapter == index)
        tiles = -(-len(mine) // TILE)
        rows.append(np.full(tiles * TILE, -1, np.int32))
        rows[-1][: len(mine)] = mine
        adapters.append(np.full(tiles, index, np.int32))
    return np.concatenate(rows), np.concatenate(adapters)
