"""What a step tells the layers of a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from octavo_kernels.kv_cache import KVScales
from octavo_kernels.paged_attention import PagedBatch


class KVCache(NamedTuple):
    """One layer's keys and values, N blocks of B tokens."""

    k: Tensor  # [N, B, Hk, D] of the model's type, or int8 or float8_e4m3fn codes
    v: Tensor  # likewise
    scales: KVScales | None = None  # of codes


class AdaptedTokens(NamedTuple):
    """Tokens of a step that go through one adapter."""

    matrices: Mapping[tuple[int, str], tuple[Tensor, Tensor]]  # by layer and part: A [rank, in], B [out, rank]
    tokens: Tensor  # [N] their indices


@dataclass(frozen=True, slots=True, eq=False)
class StepContext:
    """What every layer, and every matrix in it, is given of a step beside the activations of its T tokens.

    Attributes:
        layout: which sequence and position each token has, and where its keys and values go.
        kv: one cache per layer, written in place.
        adapters: those that any token has.
    """

    layout: PagedBatch
    kv: Sequence[KVCache]
    adapters: Sequence[AdaptedTokens] = ()
