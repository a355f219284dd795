"""`PagedBatch`: the positions of a step's tokens in their sequences and in the paged cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.integer] | Tensor


@dataclass(slots=True, weakref_slot=True, eq=False)
class PagedBatch:
    """A step's layout, made once and passed to every layer.

    Sequence s owns the flat tokens `query_start[s] : query_start[s + 1]`, which are the last tokens of its
    `context_lens[s]`; its token at position p lies in block `block_tables[s, p // block_size]`.

    Attributes:
        query_start: [S + 1] int32.
        context_lens: [S] int32, tokens in the cache once this step's are stored.
        block_tables: [S, nb] int32; entries past a sequence's last block mean nothing.
        positions: [T] int64, each token's position in its sequence.
        slots: [T] int64, each token's slot in the cache (block * block_size + offset).
        block_size: tokens per block.
        max_query_len, max_context_len: over the sequences; on the host, so that no launch waits for the device.
        min_query_len: over the sequences, or 1.
        split_keys: on a GPU, cut keys into splits of this many (a multiple of 128, such as 512). A token's attention is
            then bitwise independent of the batch and of how its sequence was cut into chunks. None chooses the fastest
            splits.
    """

    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor
    positions: Tensor
    slots: Tensor
    block_size: int
    max_query_len: int
    max_context_len: int
    min_query_len: int = 1
    split_keys: int | None = None

    @classmethod
    def build(
        cls,
        query_start: Ints,
        context_lens: Ints,
        block_tables: Ints,
        block_size: int,
        device: torch.device | str = "cpu",
        split_keys: int | None = None,
    ) -> Self:
        """Derive a step's layout on the host and copy it to `device`.

        Args:
            query_start, context_lens, block_tables: as the attributes; numpy arrays or tensors.
            block_size: tokens per block.
            device: of the model and its cache.
            split_keys: as the attribute.

        Raises:
            ValueError: the arrays contradict each other.
        """
        starts, contexts, tables = (_int64(x) for x in (query_start, context_lens, block_tables))
        _check(starts, contexts, tables, block_size)
        if split_keys is not None and (split_keys < 1 or split_keys % 128):
            raise ValueError(f"split_keys must be a positive multiple of 128, got {split_keys}")
        lens = np.diff(starts)
        row = np.repeat(np.arange(len(lens)), lens)
        positions = np.arange(starts[-1]) + (contexts - starts[1:])[row]
        slots = tables[row, positions // block_size] * block_size + positions % block_size

        def put(x: npt.NDArray[np.int64], dtype: npt.DTypeLike) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(x, dtype))
            # from pageable memory the copy would wait for the device's queued work
            return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

        return cls(
            query_start=put(starts, np.int32),
            context_lens=put(contexts, np.int32),
            block_tables=put(tables, np.int32),
            positions=put(positions, np.int64),
            slots=put(slots, np.int64),
            block_size=block_size,
            max_query_len=int(lens.max()),
            max_context_len=int(contexts.max()),
            min_query_len=int(lens.min()),
            split_keys=split_keys,
        )

    def with_tables(self, block_tables: npt.NDArray[np.int32]) -> Self:
        """The same step where its keys and values lie in other blocks, [S, nb] on the host."""
        device = self.block_tables.device
        tables = torch.from_numpy(np.ascontiguousarray(block_tables, np.int32))
        tables = tables if device.type == "cpu" else tables.pin_memory().to(device, non_blocking=True)
        rows = torch.repeat_interleave(self.query_start.diff(), output_size=len(self.positions))
        places = self.positions // self.block_size
        slots = tables[rows, places].long() * self.block_size + self.positions % self.block_size
        return dataclasses.replace(self, block_tables=tables, slots=slots)


def _int64(x: Ints) -> npt.NDArray[np.int64]:
    array = x.cpu().numpy() if isinstance(x, Tensor) else x
    return array.astype(np.int64)


def _check(
    starts: npt.NDArray[np.int64], contexts: npt.NDArray[np.int64], tables: npt.NDArray[np.int64], block_size: int
) -> None:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if contexts.ndim != 1 or len(contexts) == 0 or starts.shape != (len(contexts) + 1,) or starts[0] != 0:
        raise ValueError(
            f"query_start must be [S + 1] from 0 and context_lens [S], got {starts.shape} and {contexts.shape}"
        )
    if (np.diff(starts) < 1).any():
        raise ValueError("every sequence of a step needs at least one token")
    if (np.diff(starts) > contexts).any():
        raise ValueError("a sequence has more tokens in the step than in its context")
    needed = -(-int(contexts.max()) // block_size)
    if tables.ndim != 2 or len(tables) != len(contexts) or tables.shape[1] < needed:
        raise ValueError(f"block_tables must be [{len(contexts)}, {needed} or more], got {tables.shape}")
