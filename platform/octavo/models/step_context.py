"""What a step tells the layers of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from octavo_kernels.kv_cache import KVScales
from octavo_kernels.lora.segments import Change, Segments
from octavo_kernels.paged_attention import PagedBatch
from octavo_kernels.state_use import StateUse


class KVCache(NamedTuple):
    """One layer's keys and values, N blocks of B tokens."""

    k: Tensor  # [N, B, Hk, D] of the model's type, or int8 or float8_e4m3fn codes
    v: Tensor  # likewise
    scales: KVScales | None = None  # of codes


class StepStates(NamedTuple):
    """What recurrent layers carry: of each layer the tensors of its states (none where it is not recurrent), which are
    written in place, and which states the step reads and writes."""

    layers: Sequence[tuple[Tensor, ...]]
    use: StateUse


class StepAdapters(NamedTuple):
    """The adapters of a step, which its tokens name by their places here."""

    segments: Segments
    changes: Sequence[Sequence[Change | None]]  # of each adapter's matrices (`weights.adapted.DeviceAdapter`)
    words: Tensor  # [adapters, matrices, WORDS] theirs


@dataclass(frozen=True, slots=True, eq=False)
class StepContext:
    """What every layer, and every matrix in it, is given of a step beside the activations of its T tokens.

    Attributes:
        layout: which sequence and position each token has, and where its keys and values go.
        kv: one cache per layer, written in place.
        adapters: None where no token has one.
        states: None where the model has no recurrent layers.
        layouts: of each layer, where they differ in their blocks; None: `layout` is everyone's.
    """

    layout: PagedBatch
    kv: Sequence[KVCache]
    adapters: StepAdapters | None = None
    states: StepStates | None = None
    layouts: Sequence[PagedBatch] | None = None
