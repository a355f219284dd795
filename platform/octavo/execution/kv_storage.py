"""The KV cache itself: per layer one K and one V tensor of blocks, or (latent attention) one that is both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.execution.transfer import fetch, to_device
from octavo.kvcache.tier import Bytes
from octavo.layer_groups import LayerGroups
from octavo.models.spec import ModelSpec
from octavo.models.step_context import KVCache
from octavo_kernels.kv_cache import LARGEST_CODE


def bytes_per_block(spec: ModelSpec, block_size: int, dtype: torch.dtype, depth: int | None = None) -> int:
    """Bytes of K and V of one block over `depth` layers, or all, the scales of codes among them."""
    head = spec.head_dim * dtype.itemsize + 4 * (dtype in LARGEST_CODE)
    return spec.kv_parts * (depth or len(spec.attention_layers)) * block_size * spec.num_kv_heads * head


class KVStorage:
    """K and V of `num_blocks` blocks, and of one more that no sequence has.

    Attributes:
        spare_block: that one: where what nobody wants is stored.
        layers: per layer K and V, each [num_blocks + 1, block_size, num_kv_heads, head_dim], and the scales of codes;
            of recurrent layers nothing; with latent attention V is K.

    Args:
        dtype: the model's, or int8 or float8_e4m3fn for codes.
        groups: of layers, which share the blocks; None: a block has all layers.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: str,
        groups: LayerGroups | None = None,
    ) -> None:
        self.spare_block, self.dtype = num_blocks, dtype
        depth = len(spec.attention_layers) if groups is None else groups.depth
        shape = depth, spec.kv_parts, num_blocks + 1, block_size, spec.num_kv_heads, spec.head_dim
        self._parts = [_zeros(shape, dtype, device)]
        self.layers = [KVCache(layer[0], layer[-1]) for layer in self._parts[0]]
        if dtype in LARGEST_CODE:  # as bytes: PyTorch does not index every type of eight bits on every device
            self._parts = [self._parts[0].view(torch.uint8), _zeros(shape[:-1], torch.float32, device)]
            scales = self._parts[1]
            self.layers = [kv._replace(scales=(s[0], s[-1])) for kv, s in zip(self.layers, scales, strict=True)]
        places = range(depth) if groups is None else [place for _, place in groups.layers]
        own, nothing = iter(places), torch.zeros(0, device=device)
        self.layers = [
            KVCache(nothing, nothing) if index in spec.recurrent else self.layers[next(own)]
            for index in range(spec.num_layers)
        ]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks (source, target) in all their layers; every source is read before any target is written."""
        if pairs:
            sources, targets = to_device(np.array(pairs, np.int64).T, self._parts[0].device)
            for part in self._parts:
                part.index_copy_(2, targets, part.index_select(2, sources))

    @property
    def block_bytes(self) -> int:
        """Of a block, over all its layers."""
        return sum(part[:, :, 0].numel() * part.itemsize for part in self._parts)

    def read(self, blocks: Sequence[int]) -> Callable[[], Bytes]:
        """Begin to copy blocks to the host, a row each; what is returned waits for that."""
        places = to_device(np.asarray(blocks, np.int64), self._parts[0].device)
        taken = [part.index_select(2, places).movedim(2, 0).flatten(1).view(torch.uint8) for part in self._parts]
        wait = fetch(*taken)
        return lambda: np.concatenate(wait(), axis=1).view(np.uint8)

    def write(self, blocks: Sequence[int], data: Bytes) -> None:
        """Put rows that `read` gave into blocks."""
        device = self._parts[0].device
        places, start = to_device(np.asarray(blocks, np.int64), device), 0
        for part in self._parts:
            shape = part.movedim(2, 0).shape[1:]
            stop = start + shape.numel() * part.itemsize
            rows = to_device(data[:, start:stop], device).view(part.dtype).view(-1, *shape)
            part.index_copy_(2, places, rows.movedim(0, 2))
            start = stop


class TorchBlocks:
    """The blocks of a storage, for whose device's work all copies wait in turn (`octavo.kvcache.tier.KVBlocks`)."""

    def __init__(self, form: str, storage: KVStorage) -> None:
        self.form, self.block_bytes = f"{form} {storage.dtype}", storage.block_bytes
        self._storage = storage

    @torch.inference_mode()
    def read(self, blocks: Sequence[int]) -> Callable[[], Bytes]:
        """As in `KVBlocks`."""
        return self._storage.read(blocks)

    @torch.inference_mode()
    def write(self, blocks: Sequence[int], data: Bytes) -> None:
        """As in `KVBlocks`."""
        self._storage.write(blocks, data)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeroed memory (masked positions are multiplied by zero, and zero times a stray NaN is NaN).

    On a CPU it comes from calloc, whose pages take no memory until they are written; torch.zeros would touch a whole
    pool of a gigabyte at the start.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flat = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(flat).view(dtype).view(shape)
