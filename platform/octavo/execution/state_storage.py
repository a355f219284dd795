"""The states of recurrent layers, beside the KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.execution.transfer import to_device
from octavo.models.spec import ModelSpec
from octavo.models.step_context import StepStates
from octavo.step import StateRows
from octavo_kernels.state_use import StateUse


class StateStorage:
    """The states of `count` sequences.

    Args:
        dtype: the model's.
    """

    def __init__(self, spec: ModelSpec, count: int, dtype: torch.dtype, device: str) -> None:
        assert spec.recurrence is not None
        self._device = device
        kinds = [(part.shape, torch.float32 if part.exact else dtype) for part in spec.recurrence.state]

        def layer(index: int) -> tuple[Tensor, ...]:
            if index not in spec.recurrent:
                return ()
            return tuple(torch.zeros(count, *shape, dtype=kind, device=device) for shape, kind in kinds)

        try:
            self._layers = [layer(index) for index in range(spec.num_layers)]
        except (MemoryError, RuntimeError) as error:
            raise ModelError(f"no memory for {count} states of recurrent layers: lower kv_cache_bytes") from error

    def step(self, rows: StateRows | None, sequences: int) -> StepStates:
        """What layers are told of a step."""
        if rows is None:
            return StepStates(self._layers, StateUse.nothing(sequences, torch.device(self._device)))
        arrays = (rows.source, rows.saved, rows.states)
        return StepStates(self._layers, StateUse(*(to_device(array, self._device).long() for array in arrays)))
