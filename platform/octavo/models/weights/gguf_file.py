"""Weights of a GGUF file, dequantised by the `gguf` package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.models.weights.stored import StoredTensor
from octavo.source import open_gguf

if TYPE_CHECKING:
    from gguf import ReaderTensor

CHUNK_VALUES = 1 << 20
"""Values dequantised at a time. gguf's numpy code makes several float32 copies of them: 4 MiB each."""


def read_gguf(file: Path) -> list[StoredTensor]:
    """The tensors of a GGUF file, but for the rotary scaling, which is part of the config.

    Raises:
        ModelError: the file has the other byte order; while reading, a block format that `gguf` cannot dequantise.
    """
    reader = open_gguf(file)
    if reader.byte_order != "I":
        raise ModelError("the GGUF file has the other byte order than this machine: convert it (gguf_convert_endian)")
    return [_stored(file, tensor) for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]


def _stored(file: Path, tensor: ReaderTensor) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return StoredTensor(tensor.name, shape, int(tensor.n_bytes), partial(_read, file, tensor, shape))


def _read(file: Path, tensor: ReaderTensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    step = max(1, CHUNK_VALUES // shape[-1]) if len(shape) > 1 else shape[0]
    for start in range(0, shape[0], step):
        yield _dequantize(tensor, _read_rows(file, tensor, start, min(start + step, shape[0])))


def _read_rows(file: Path, tensor: ReaderTensor, start: int, end: int) -> npt.NDArray[Any]:
    """Stored rows, read anew: the reader's own map would keep every page it has touched resident."""
    data = tensor.data
    values_per_row = data[:1].size
    offset = tensor.data_offset + start * values_per_row * data.itemsize
    values = np.fromfile(file, data.dtype, count=(end - start) * values_per_row, offset=offset)
    return values.reshape(end - start, *data.shape[1:])


def _dequantize(tensor: ReaderTensor, rows: npt.NDArray[Any]) -> Tensor:
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(rows, tensor.tensor_type))
    except NotImplementedError as error:
        raise ModelError(f"{tensor.name}: GGUF tensors of type {tensor.tensor_type.name} are not supported") from error
