"""Random weights instead of a checkpoint, to time a model of which only the config is available."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from octavo.models.weights.layout import Slot
from octavo.models.weights.names import Naming
from octavo.models.weights.stored import StoredTensor

_SCALE = 0.02


def read_random(places: list[Slot], naming: Naming, device: torch.device) -> list[StoredTensor]:
    """Tensors for these places, filled with random values on `device` when they are read; norms are ones."""
    return [_tensor(slot, naming, device) for slot in places]


def _tensor(slot: Slot, naming: Naming, device: torch.device) -> StoredTensor:
    def read(rows: range | None, columns: range | None) -> Iterator[Tensor]:
        parts = [
            len(part) if part is not None else size for part, size in zip((rows, columns), slot.shape, strict=False)
        ]
        if slot.is_norm:
            yield torch.full(parts, 1.0 - naming.norm_offset, device=device)
        else:
            yield torch.randn(parts, dtype=slot.target.dtype, device=device).mul_(_SCALE)

    return StoredTensor(naming.stored_name(slot), slot.shape, slot.target.nbytes, read)
