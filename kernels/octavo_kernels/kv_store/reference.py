"""KV store in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def kv_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    k_cache.flatten(0, 1).index_copy_(0, slots, k)
    v_cache.flatten(0, 1).index_copy_(0, slots, v)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys or values of 8 bits: the largest of a head's values becomes 127.

    Args:
        x: [..., D] finite floats.

    Returns:
        codes [..., D] int8 and scales [..., 1] float32, whose product is x to within half a scale.
    """
    top = x.float().abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 0, torch.full_like(top, 127) / top, 0)
    return (x.float() * inverse).round().to(torch.int8), top * (1 / 127)
