"""Experts of a Hugging Face directory as four-bit floats (MXFP4): codes and scales are tensors of their own.

NAME_blocks is [experts, rows, columns / 32, 16] uint8, two codes in a byte, of the first column in the lower bits;
NAME_scales is [experts, rows, columns / 32] uint8, exponents of two plus 127. GGUF's blocks hold the same, a scale
before its codes, and in a byte the codes of columns i and i + 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.models.weights.stored import StoredTensor
from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.formats import Array

_CODES, _SCALES = "_blocks", "_scales"


def join_mxfp4(stored: list[StoredTensor]) -> list[StoredTensor]:
    """Join codes and scales to tensors named NAME_mxfp4.weight.

    Raises:
        ModelError: one of the two is missing, or they contradict each other.
    """
    scales = {tensor.name: tensor for tensor in stored if tensor.name.endswith(_SCALES)}
    codes = {tensor.name.removesuffix(_CODES): tensor for tensor in stored if tensor.name.endswith(_CODES)}
    if alone := [name for name in scales if name.removesuffix(_SCALES) not in codes]:
        raise ModelError(f"the checkpoint lacks {alone[0].removesuffix(_SCALES)}{_CODES}")
    left = [tensor for tensor in stored if not tensor.name.endswith((_CODES, _SCALES))]
    return left + [_joined(stem, tensor, scales.get(stem + _SCALES)) for stem, tensor in codes.items()]


def _joined(stem: str, codes: StoredTensor, scales: StoredTensor | None) -> StoredTensor:
    if scales is None:
        raise ModelError(f"the checkpoint lacks {stem}{_SCALES}")
    if len(codes.shape) != 4 or codes.shape != (*scales.shape, 16) or {codes.dtype, scales.dtype} != {"U8"}:
        raise ModelError(f"{codes.name} is {list(codes.shape)}, and {scales.name} {list(scales.shape)}: no MXFP4")
    experts, rows, groups, _ = codes.shape

    def blocks(chosen: range | None, _columns: range | None) -> Array:
        return as_gguf(_read(codes, chosen), _read(scales, chosen))

    def read(chosen: range | None, _columns: range | None) -> Iterator[Tensor]:
        for expert in chosen or range(experts):
            weight = BlockWeight.from_blocks(blocks(range(expert, expert + 1), None), "MXFP4")
            yield weight.dequantize().view(1, rows, groups * 32)

    return replace(codes, name=f"{stem}_mxfp4.weight", shape=(experts, rows, groups * 32), read=read, blocks=blocks,
                   num_bytes=codes.num_bytes + scales.num_bytes, format="MXFP4")  # fmt: skip


def as_gguf(codes: Array, scales: Array) -> Array:
    """Of experts one below the other: [rows, bytes]."""
    low, high = codes & np.uint8(15), codes >> np.uint8(4)
    values = np.stack([low, high], axis=-1).reshape(*scales.shape, 32)
    packed = values[..., :16] | values[..., 16:] << np.uint8(4)
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(-1, scales.shape[-1] * 17)


def _read(tensor: StoredTensor, experts: range | None) -> Array:
    return torch.cat(list(tensor.read(experts, None))).numpy()
