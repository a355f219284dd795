"""Weights of a GGUF file, dequantised by the `gguf` package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.models.weights.stored import StoredTensor

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

CHUNK_VALUES = 1 << 20
"""Values dequantised at a time. gguf's numpy code makes several float32 copies of them: 4 MiB each."""


def read_gguf(reader: GGUFReader) -> list[StoredTensor]:
    """The tensors of an open GGUF file, but for the rotary scaling, which is part of the config.

    Raises:
        ModelError: the file has the other byte order; while reading, a block format that `gguf` cannot dequantise.
    """
    if reader.byte_order != "I":
        raise ModelError("the GGUF file has the other byte order than this machine: convert it (gguf_convert_endian)")
    return [_stored(tensor) for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]


def _stored(tensor: ReaderTensor) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return StoredTensor(tensor.name, shape, int(tensor.n_bytes), partial(_read, tensor, shape))


def _read(tensor: ReaderTensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    step = max(1, CHUNK_VALUES // shape[-1]) if len(shape) > 1 else shape[0]
    for start in range(0, shape[0], step):
        yield _dequantize(tensor, slice(start, start + step))


def _dequantize(tensor: ReaderTensor, rows: slice) -> Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data[rows], tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(f"{tensor.name}: GGUF tensors of type {tensor.tensor_type.name} are not supported") from error
    # F32 comes back as a view of the read-only map, which torch would warn about
    return torch.from_numpy(values if values.flags.writeable else np.array(values))
