"""Filling a model's weights from a checkpoint, a few rows at a time.

A format gives `StoredTensor`s: a name, a shape, and the rows in chunks. Names and shapes are compared with what the
model needs before any row is read; then each chunk is converted straight into its final place, so that peak memory is
the model's size and one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from octavo.errors import ModelError
from octavo.models.weights.layout import Slot
from octavo.models.weights.names import Naming
from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.quantized import QuantizedWeight


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: without the prefixes that differ between checkpoints of one family.
        shape: its logical shape.
        num_bytes: its size in the file.
        read: reads some rows (None: all) in order, a few at a time, of each some columns (None: all); dequantised where
            it is a quantised matrix.
        quantized: reads a quantised matrix as it is; None for other tensors.
        blocks: reads some rows and columns of a matrix of GGUF's blocks as they are, or gives None where a cut goes
            through a block; None for other tensors.
        dtype: of its values in a safetensors file.
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[range | None, range | None], Iterator[Tensor]]
    quantized: Callable[[], QuantizedWeight] | None = None
    blocks: Callable[[range | None, range | None], BlockWeight | None] | None = None
    dtype: str = "F32"


def fill(
    places: list[Slot],
    naming: Naming,
    stored: list[StoredTensor],
    head_dim: int,
    *,
    title: str,
    progress: bool,
    take: Callable[[StoredTensor, Slot, Tensor | None], None] | None = None,
) -> None:
    """Copy every stored tensor to its place.

    Args:
        places: what the model needs.
        naming: how the checkpoint names and stores it.
        stored: what the checkpoint holds, without the tensors that a model like this does not use.
        head_dim: rows of one head in q and k.
        title: of the progress bar.
        progress: whether to draw it.
        take: gets the tensors whose places are on the meta device, and where each of their stored rows belongs, where
            that is not its own place.

    Raises:
        ModelError: tensors are missing, not expected, or of another shape; the message names them.
    """
    by_name = {naming.stored_name(slot): slot for slot in places}
    compare(by_name, stored)
    total = sum(tensor.num_bytes for tensor in stored)
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=not progress) as bar:
        for tensor in stored:
            slot = by_name[tensor.name]
            rows = row_order(slot, naming, head_dim)
            if take is not None and slot.target.is_meta:
                take(tensor, slot, rows)
            else:
                _copy(tensor, slot, naming, rows)
            bar.update(tensor.num_bytes)


def compare(by_name: dict[str, Slot], stored: list[StoredTensor]) -> None:
    """Check that a checkpoint holds what a model needs: stored name -> place.

    Raises:
        ModelError: tensors are missing, not expected, or of another shape; the message names them.
    """
    shapes = {tensor.name: tensor.shape for tensor in stored}
    if missing := [name for name in by_name if name not in shapes]:
        head = ", and its config does not say tie_word_embeddings" if "lm_head.weight" in missing else ""
        raise ModelError(f"the checkpoint lacks {_list(missing)}{head}")
    if extra := [name for name in shapes if name not in by_name]:
        raise ModelError(f"the checkpoint holds tensors that a model of this kind does not have: {_list(extra)}")
    wrong = [
        f"{name} is {list(shapes[name])} instead of {list(slot.shape)}"
        for name, slot in by_name.items()
        if slot.shape != shapes[name]
    ]
    if wrong:
        raise ModelError(f"tensors of the wrong shape: {_list(wrong)}")


def _list(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def row_order(slot: Slot, naming: Naming, head_dim: int) -> Tensor | None:
    """Where each stored row of a tensor belongs, where that is not its own place."""
    interleaved = naming.interleaved_rope and slot.part in ("q", "k")
    return half_split_rows(len(slot.target), head_dim) if interleaved else None


def _copy(tensor: StoredTensor, slot: Slot, naming: Naming, rows: Tensor | None) -> None:
    rows = None if rows is None else rows.to(slot.target.device)
    start = 0
    for chunk in tensor.read(slot.rows, slot.columns):
        end = start + len(chunk)
        if rows is None:
            slot.target[start:end].copy_(chunk)
        else:
            slot.target.index_copy_(0, rows[start:end], chunk.to(slot.target.device, slot.target.dtype))
        start = end
    if slot.is_norm:
        slot.target.add_(naming.norm_offset)


def half_split_rows(num_rows: int, head_dim: int) -> Tensor:
    """Where each stored row belongs: stored row 2 i + j of a head is its row i + j head_dim / 2."""
    halves = torch.arange(num_rows).view(-1, 2, head_dim // 2)
    return halves.transpose(1, 2).reshape(-1)
