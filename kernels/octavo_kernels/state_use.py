"""`StateUse`: which states recurrent layers read and write in a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StateUse(NamedTuple):
    """A layer's states are rows of tensors [N, ...]; those that a step reads are written by nobody else in it.

    Attributes:
        source: [S] int64, the row that each sequence goes on from; -1 begins with zeros.
        saved: [K] int64 flat tokens, rising: what they leave ...
        targets: [K] int64 ... goes into these rows.
    """

    source: Tensor
    saved: Tensor
    targets: Tensor

    @classmethod
    def nothing(cls, sequences: int, device: torch.device) -> StateUse:
        """All begin, and nothing is kept."""
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(torch.full((sequences,), -1, device=device), none, none)

    def read(self, states: Tensor) -> Tensor:
        """[N, ...] -> [S, ...]: what each sequence goes on from."""
        found = states[self.source.clamp(min=0)]
        return found.masked_fill_((self.source < 0).view(-1, *[1] * (states.ndim - 1)), 0)
