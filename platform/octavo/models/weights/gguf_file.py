"""Reads a GGUF file's weights: dequantised by the `gguf` package, or as quantised blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.gguf_header import Entry
from octavo.model_files import reading
from octavo.models.spec import ModelSpec
from octavo.models.weights.fused import gguf_entries
from octavo.models.weights.names import Naming, gguf_naming
from octavo.models.weights.split import split
from octavo.models.weights.stored import StoredTensor
from octavo_kernels.linear.formats import GROUPED, Array

_FREQUENCIES = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})

CHUNK_VALUES = 1 << 20
"""Values dequantised at a time. gguf's numpy code makes several float32 copies of them: 4 MiB each."""


def read_gguf(file: Path, spec: ModelSpec) -> list[StoredTensor]:
    """The tensors of a GGUF file that a model of `spec` uses, except its head's, and rotary scaling factors, which are
    part of the config.

    Raises:
        ModelError: the file is damaged; while reading, a block format that `gguf` cannot dequantise.
    """
    unused = _FREQUENCIES | (set() if spec.head is None else spec.head.stored)
    naming = gguf_naming(spec)
    stored = [_stored(entry) for name, entry in gguf_entries(file, naming, spec).items() if name not in unused]
    return [part for tensor in stored for part in _parts(tensor, naming, spec)]


def _parts(tensor: StoredTensor, naming: Naming, spec: ModelSpec) -> list[StoredTensor]:
    found = naming.stack_of(tensor.name)
    if found is not None and not found[1].grouped:  # the part of a stack that was split, and is called as that was
        return [tensor]
    return split(tensor, naming, spec)


def _stored(entry: Entry) -> StoredTensor:
    blocks = partial(_whole_blocks, entry) if entry.format in GROUPED and len(entry.shape) == 2 else None
    read = partial(read_rows, entry)
    return StoredTensor(entry.name, entry.shape, entry.num_bytes, read, blocks=blocks, format=entry.format)


def _whole_blocks(entry: Entry, rows: range | None, columns: range | None) -> Array | None:
    if columns is not None and (columns.start % entry.block_values or columns.stop % entry.block_values):
        return None
    return read_blocks(entry, rows, columns)


def read_rows(entry: Entry, rows: range | None = None, columns: range | None = None) -> Iterator[Tensor]:
    """Dequantised float32 values of some rows and columns (None: all), a few rows at a time."""
    values_per_row = int(np.prod(entry.shape[1:]))
    step = max(1, CHUNK_VALUES // values_per_row)
    rows = range(entry.shape[0]) if rows is None else rows
    for start in range(rows.start, rows.stop, step):
        count = min(step, rows.stop - start)
        if columns is None:
            yield _dequantize(entry, read_blocks(entry, range(start, start + count))).view(count, *entry.shape[1:])
        else:
            whole = range(columns.start // entry.block_values * entry.block_values,
                          -(-columns.stop // entry.block_values) * entry.block_values)  # fmt: skip
            values = _dequantize(entry, read_blocks(entry, range(start, start + count), whole))
            yield values[:, columns.start - whole.start : columns.stop - whole.start]


def read_blocks(entry: Entry, rows: range | None = None, columns: range | None = None) -> npt.NDArray[np.uint8]:
    """Stored bytes of some rows and columns (None: all): [rows, bytes]; columns must begin and end at a block's
    edge."""
    rows = range(entry.shape[0]) if rows is None else rows
    # Not from a memory map: its pages would stay resident beside the weights.
    offset = entry.offset + rows.start * entry.row_bytes
    with reading(entry.file):
        stored = np.fromfile(entry.file, np.uint8, count=len(rows) * entry.row_bytes, offset=offset)
        stored = stored.reshape(len(rows), entry.row_bytes)
    if columns is None:
        return stored
    per_block = entry.row_bytes // (entry.shape[1] // entry.block_values)
    begin, end = columns.start // entry.block_values, columns.stop // entry.block_values
    return stored[:, begin * per_block : end * per_block]


def _dequantize(entry: Entry, rows: npt.NDArray[np.uint8]) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(rows, GGMLQuantizationType[entry.format]))
    except NotImplementedError as error:
        raise ModelError(f"{entry.name}: GGUF tensors of type {entry.format} are not supported") from error
