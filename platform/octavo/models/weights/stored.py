"""Fills a model's weights from a checkpoint, a few rows at a time.

Each format provides `StoredTensor`s: a name, a shape, and rows in chunks. Names and shapes are compared with what the
model needs before any row is read. Then each chunk is converted directly into its destination, so peak memory is the
model's size plus one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from octavo.errors import ModelError
from octavo.models.weights.layout import Slot
from octavo.models.weights.names import Naming, halves_order
from octavo_kernels.linear.formats import Array
from octavo_kernels.linear.quantized import QuantizedWeight


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: without the prefixes that differ between checkpoints of one family.
        shape: its logical shape.
        num_bytes: its size in the file.
        read: reads some rows and columns (None: all), a few rows at a time, in order; a quantised matrix is
            dequantised.
        quantized: reads a quantised matrix as it is; None for other tensors.
        blocks: reads some rows and columns of a matrix as GGUF's blocks, [rows, bytes], or returns None if a cut goes
            through a block; None for other tensors.
        format: GGUF's name of the blocks.
        dtype: of its values in a safetensors file.
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[range | None, range | None], Iterator[Tensor]]
    quantized: Callable[[], QuantizedWeight] | None = None
    blocks: Callable[[range | None, range | None], Array | None] | None = None
    format: str = ""
    dtype: str = "F32"


def fill(
    places: list[Slot],
    naming: Naming,
    stored: list[StoredTensor],
    *,
    title: str,
    progress: bool,
    take: Callable[[StoredTensor, Slot, Tensor | None], None] | None = None,
) -> None:
    """Copy every stored tensor to its destination.

    Args:
        places: what the model needs.
        naming: how the checkpoint names and stores it.
        stored: the checkpoint's tensors, without those that this kind of model does not use.
        title: of the progress bar.
        progress: whether to draw it.
        take: called for tensors whose destination is on the meta device, with their slot and `row_order`.

    Raises:
        ModelError: tensors are missing, not expected, or of another shape; the message names them.
    """
    by_name = {naming.stored_name(slot): slot for slot in places}
    compare(by_name, stored)
    total = sum(tensor.num_bytes for tensor in stored)
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=not progress) as bar:
        for tensor in stored:
            slot = by_name[tensor.name]
            rows = row_order(slot, naming)
            if take is not None and slot.target.is_meta:
                take(tensor, slot, rows)
            else:
                _copy(tensor, slot, naming, rows)
            bar.update(tensor.num_bytes)


def compare(by_name: dict[str, Slot], stored: list[StoredTensor]) -> None:
    """Check a checkpoint's tensors against `by_name`, the places a model needs by stored name.

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


def row_order(slot: Slot, naming: Naming) -> Tensor | None:
    """For each stored row of a tensor, the row it belongs to; None if every row is in its place."""
    if (turned := naming.turned.get(slot.part)) is None:
        return None
    order = halves_order(len(slot.target), turned)
    return torch.from_numpy(order).argsort()


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
    naming.restore(slot, slot.target)
