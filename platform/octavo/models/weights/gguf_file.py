"""Weights of a GGUF file, dequantised by the `gguf` package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.gguf_header import Entry, read_directory
from octavo.models.weights.stored import StoredTensor

CHUNK_VALUES = 1 << 20
"""Values dequantised at a time. gguf's numpy code makes several float32 copies of them: 4 MiB each."""


def read_gguf(file: Path) -> list[StoredTensor]:
    """The tensors of a GGUF file, but for the rotary scaling, which is part of the config.

    Raises:
        ModelError: the file is damaged; while reading, a block format that `gguf` cannot dequantise.
    """
    entries = [entry for name, entry in read_directory(file).items() if name != "rope_freqs.weight"]
    return [StoredTensor(entry.name, entry.shape, entry.num_bytes, partial(read_rows, entry)) for entry in entries]


def read_rows(entry: Entry) -> Iterator[Tensor]:
    """A tensor's values in float32, some rows at a time."""
    values_per_row = int(np.prod(entry.shape[1:]))
    step = max(1, CHUNK_VALUES // values_per_row)
    for start in range(0, entry.shape[0], step):
        count = min(step, entry.shape[0] - start)
        # Not from a memory map: its pages would stay resident beside the weights.
        offset = entry.offset + start * entry.row_bytes
        stored = np.fromfile(entry.file, np.uint8, count=count * entry.row_bytes, offset=offset)
        yield _dequantize(entry, stored.reshape(count, -1)).view(count, *entry.shape[1:])


def _dequantize(entry: Entry, rows: npt.NDArray[np.uint8]) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(rows, GGMLQuantizationType[entry.format]))
    except NotImplementedError as error:
        raise ModelError(f"{entry.name}: GGUF tensors of type {entry.format} are not supported") from error
