"""KV store in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.kv_cache import LARGEST_CODE, KVScales


def kv_store(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kv_scales: KVScales | None = None
) -> None:
    if kv_scales is None:
        k_cache.flatten(0, 1).index_copy_(0, slots, k)
        v_cache.flatten(0, 1).index_copy_(0, slots, v)
        return
    for x, cache, cached_scales in ((k, k_cache, kv_scales[0]), (v, v_cache, kv_scales[1])):
        codes, scales = quantize(x, cache.dtype)
        # as bytes, because PyTorch cannot index every 8-bit type on every device
        cache.flatten(0, 1).view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
        cached_scales.flatten(0, 1).index_copy_(0, slots, scales[..., 0])


def quantize(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Quantise keys or values to 8 bits: the largest of a head's values becomes 127 in int8 and 448 in float8_e4m3fn.

    Args:
        x: [..., D] floats.
        dtype: of the codes.

    Returns:
        codes [..., D] and scales [..., 1] float32. Their product differs from x by at most half a scale in int8, and by
        at most 1/16 of the value or 1/1024 of a scale in float8. A scale is NaN if any value of its head is not finite.
    """
    wide, largest = x.float(), LARGEST_CODE[dtype]
    top = wide.abs().amax(-1, keepdim=True)
    broken = ~top.isfinite()
    inverse = torch.where((top > 0) & ~broken, torch.full_like(top, largest) / top, 0)
    scaled = torch.where(broken, 0, wide) * inverse
    codes = scaled.round() if dtype == torch.int8 else scaled.clamp_(-largest, largest)
    return codes.to(dtype), (top * (1 / largest)).masked_fill(broken, torch.nan)
