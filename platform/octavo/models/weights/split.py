"""Stored tensors that hold several of a model's: each as a tensor of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from octavo.models.spec import ModelSpec
from octavo.models.weights.fused import check_rows, experts_of, name_of, some_of, stacked_rows
from octavo.models.weights.names import Naming
from octavo.models.weights.stored import StoredTensor
from octavo_kernels.linear.formats import Array
from octavo_kernels.linear.quantized import QuantizedWeight, rows_of


def split(tensor: StoredTensor, naming: Naming, spec: ModelSpec) -> list[StoredTensor]:
    """The parts of a tensor that stacks several, such as q, k and v; other tensors as they are.

    Raises:
        ModelError: it does not have the rows of its parts.
    """
    if (found := naming.stack_of(tensor.name)) is None:
        return [_as_vector(tensor, naming)]
    names, stack = found
    rows = stacked_rows(stack, spec)
    each = [tensor]
    if stack.experts:
        each = [_expert(tensor, i, transposed=stack.transposed) for i in range(experts_of(tensor, spec))]
    check_rows(tensor.name, each[0].shape[0], rows)
    parts = [(part, _part(one, name_of(name, i), rows[part])) for i, one in enumerate(each) for part, name in names]
    return [_turned(one, spec) if part == "k_b" else one for part, one in parts]


def cut(values: Tensor, rows: range | None, columns: range | None) -> Tensor:
    """Some rows and columns (None: all)."""
    values = values if rows is None else values[rows.start : rows.stop : rows.step]
    return values if columns is None else values[:, columns.start : columns.stop]


def _as_vector(tensor: StoredTensor, naming: Naming) -> StoredTensor:
    """What chooses experts, where it is stored as a matrix of one row; taps of a convolution without its groups."""
    if tensor.shape[1:2] == (1,) and len(tensor.shape) == 3:

        def taps(rows: range | None, columns: range | None) -> Iterator[Tensor]:
            return (cut(values[:, 0], rows, columns) for values in tensor.read(None, None))

        return replace(tensor, shape=(tensor.shape[0], tensor.shape[2]), read=taps)
    bias = naming.parts.get("router.choice_bias")
    if bias is None or not tensor.name.endswith(bias) or tensor.shape[:-1] != (1,):
        return tensor

    def read(_rows: range | None, _columns: range | None) -> Iterator[Tensor]:
        return (values.flatten() for values in tensor.read(None, None))

    return replace(tensor, shape=tensor.shape[1:], read=read)


def _turned(tensor: StoredTensor, spec: ModelSpec) -> StoredTensor:
    """What makes each head's keys of latents, [heads * content, size], as what makes latents of queries: each head's
    matrix transposed, [heads * size, content]."""
    assert spec.latent is not None
    content, size = spec.latent.content, spec.latent.size

    def read(rows: range | None, _columns: range | None) -> Iterator[Tensor]:
        wanted = None if rows is None else range(rows.start // size * content, rows.stop // size * content)
        values = torch.cat(list(tensor.read(wanted, None)))
        yield values.view(-1, content, size).mT.reshape(-1, content)

    shape = tensor.shape[0] // content * size, content
    return replace(tensor, shape=shape, read=read, quantized=None, blocks=None, dtype="F32")


def _expert(tensor: StoredTensor, index: int, *, transposed: bool) -> StoredTensor:
    """One expert's matrix, or its bias."""
    shape = tensor.shape[1:]

    def read(rows: range | None, columns: range | None) -> Iterator[Tensor]:
        values = torch.cat(list(tensor.read(range(index, index + 1), None)))[0]
        yield cut(values.mT if transposed and values.ndim == 2 else values, rows, columns)

    def blocks(rows: range | None, columns: range | None) -> Array | None:
        assert tensor.blocks is not None
        if columns is not None and len(columns) < shape[-1]:
            return None
        values = tensor.blocks(range(index, index + 1), None)
        return values if values is None or rows is None else values[rows.start : rows.stop : rows.step]

    return replace(
        tensor,
        shape=shape[::-1] if transposed else shape,
        num_bytes=tensor.num_bytes // tensor.shape[0],
        read=read,
        blocks=None if tensor.blocks is None else blocks,
    )


def _part(tensor: StoredTensor, name: str, rows: list[range]) -> StoredTensor:
    """Some of a tensor's rows, as a tensor of its own."""
    size = sum(map(len, rows))

    def read(wanted: range | None, columns: range | None) -> Iterator[Tensor]:
        for run in some_of(rows, wanted or range(size)):
            yield from tensor.read(run, columns)

    def quantized() -> QuantizedWeight:
        assert tensor.quantized is not None
        return rows_of(tensor.quantized(), torch.tensor([row for run in rows for row in run]))

    def blocks(wanted: range | None, columns: range | None) -> Array | None:
        assert tensor.blocks is not None
        found = [tensor.blocks(run, columns) for run in some_of(rows, wanted or range(size))]
        return None if any(run is None for run in found) else np.concatenate(found)  # type: ignore[arg-type]

    return replace(
        tensor,
        name=name,
        shape=(size, *tensor.shape[1:]),
        num_bytes=tensor.num_bytes * size // tensor.shape[0],
        read=read,
        quantized=None if tensor.quantized is None else quantized,
        blocks=None if tensor.blocks is None else blocks,
    )
