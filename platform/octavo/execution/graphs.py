"""Decode steps as CUDA graphs: one launch instead of hundreds, at fixed addresses, padded to a few sizes.

A graph is captured when its size first occurs. Rows beyond the step's are padding: they compute token 0 at position 0,
store it in a block that no sequence has, and nobody looks at what comes out.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from octavo.execution.kv_storage import KVStorage
from octavo.execution.transfer import to_device
from octavo.layer_groups import ONE_GROUP, LayerGroups
from octavo.models.step_context import StepContext
from octavo.step import StepBatch
from octavo_kernels.paged_attention import PagedBatch

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor, StepContext], Tensor]
"""Tokens [T] and their context -> hidden states [T, D]."""


class Capture(Protocol):
    """Makes a function repeatable: what it returns runs the same work on the same memory."""

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]: ...


def padded_sizes(largest: int) -> list[int]:
    """1, 2, 4, 8, 16, 24, ..., 256, 288, 320, ...: up to the first that holds `largest` rows."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(288, largest + 32, 32)]
    return sizes[: bisect.bisect_left(sizes, largest) + 1]


class DecodeInputs:
    """Where a captured step reads its inputs.

    Attributes:
        sizes: to which steps are padded.
        block_tables: [G, P, W] int32, G groups of layers; only rows that changed are copied.

    Args:
        drawn: what the step before drew, [max_rows] int64.
        kv: the cache.
        width: blocks of a sequence at most.
        split_keys: of the layout (see `PagedBatch`).
        groups: of layers.
    """

    def __init__(
        self,
        drawn: Tensor,
        kv: KVStorage,
        width: int,
        block_size: int,
        split_keys: int | None = None,
        groups: LayerGroups = ONE_GROUP,
    ) -> None:
        self._split_keys = split_keys
        self.sizes = padded_sizes(len(drawn))
        rows, device = self.sizes[-1], drawn.device
        self._drawn = drawn
        self.block_size = block_size
        self._kv = kv.layers
        self._spare_slot = kv.spare_block * block_size
        self._groups = groups
        self._columns = torch.zeros((3 + groups.count, rows), dtype=torch.int64, device=device)
        shape = groups.count, rows, width
        self._tables = np.full(shape, kv.spare_block, np.int32)  # what `block_tables` holds
        self.block_tables = torch.full(shape, kv.spare_block, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)

    def holds(self, batch: StepBatch) -> bool:
        """Whether a step fits: a token for each of so many sequences."""
        _, rows, width = self._tables.shape
        blocks = -(-int(batch.context_lens.max()) // self.block_size)
        return batch.num_tokens == batch.num_seqs <= rows and blocks <= width

    def fill(self, batch: StepBatch, size: int) -> None:
        """Copy a step's inputs, with padding up to `size` rows."""
        count = batch.num_seqs
        positions = batch.context_lens.astype(np.int64) - 1
        tables = batch.block_tables.reshape(self._groups.count, count, -1)
        blocks = tables[:, np.arange(count), positions // self.block_size].astype(np.int64)
        columns = np.zeros((3 + len(tables), size), np.int64)
        columns[0, :count] = batch.token_ids
        columns[1] = -1
        if batch.sources is not None:
            columns[1, :count] = batch.sources
        columns[2, :count] = positions
        columns[3:] = self._spare_slot
        columns[3:, :count] = blocks * self.block_size + positions % self.block_size
        self._columns[:, :size].copy_(to_device(columns, self._columns.device))
        for group, table in enumerate(tables):
            self._update_table(group, table[:, : self._tables.shape[2]])

    def _update_table(self, group: int, table: np.ndarray) -> None:
        kept = self._tables[group, : len(table), : table.shape[1]]
        changed = np.flatnonzero((kept != table).any(1))
        if len(changed):
            kept[changed] = table[changed]
            device = self.block_tables.device
            there = self.block_tables[group, :, : table.shape[1]]
            there.index_copy_(0, to_device(changed, device), to_device(table[changed], device))

    def read(self, size: int) -> tuple[Tensor, StepContext]:
        """The tokens [size] and their context, as operations on the fixed memory."""
        tokens, sources, positions, *slots = self._columns[:, :size]
        tokens = fill_in(tokens, sources, self._drawn)
        width = self.block_tables.shape[2]
        layouts = [
            PagedBatch(
                query_start=self._starts[: size + 1],
                context_lens=(positions + 1).int(),
                block_tables=self.block_tables[group, :size],
                positions=positions,
                slots=of_group,
                block_size=self.block_size,
                max_query_len=1,
                max_context_len=width * self.block_size,
                split_keys=self._split_keys,
            )
            for group, of_group in enumerate(slots)
        ]
        return tokens, StepContext(layouts[0], self._kv, layouts=of_layers(layouts, self._groups))


def of_layers(layouts: list[PagedBatch], groups: LayerGroups) -> list[PagedBatch] | None:
    """`StepContext.layouts` of those of groups."""
    return None if len(layouts) == 1 else [layouts[group] for group, _ in groups.layers]


def fill_in(tokens: Tensor, sources: Tensor, drawn: Tensor) -> Tensor:
    """Token ids with those that the step before drew; `sources` as in `StepBatch`. A failed row goes on with 0."""
    return torch.where(sources >= 0, drawn[sources.clamp(min=0)], tokens).clamp(min=0)


class DecodeGraphs:
    """Runs decode steps through graphs.

    Args:
        forward: the model.
        capture: `cuda_capture()`, or in tests the function itself.
    """

    def __init__(self, forward: Forward, inputs: DecodeInputs, capture: Capture) -> None:
        self._forward, self._inputs, self._capture = forward, inputs, capture
        self._replays: dict[int, Callable[[], Tensor]] = {}
        self._failed = False

    def run(self, batch: StepBatch) -> Tensor | None:
        """The hidden states [S, D] of a step; None where it has to run without a graph."""
        if self._failed or not self._inputs.holds(batch):
            return None
        size = self._inputs.sizes[bisect.bisect_left(self._inputs.sizes, batch.num_seqs)]
        self._inputs.fill(batch, size)
        if size not in self._replays:
            try:
                self._replays[size] = self._capture(lambda: self._forward(*self._inputs.read(size)))
            except Exception as error:  # whatever a kernel or the driver has against it: the step can still be run
                self._failed = True
                logger.warning("decode steps run without CUDA graphs: a step could not be captured: %s", error)
                return None
        return self._replays[size]()[: batch.num_seqs]


def cuda_capture() -> Capture:
    """Captures into CUDA graphs that share one memory pool, which they can because they run one after the other."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()  # compiles kernels and sets libraries up, which a capture must not
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            out = function()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return capture
