"""What every op that touches the paged cache checks of it."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.kv_cache import check_caches

SHAPE = 5, 4, 2, 8  # blocks, tokens of each, heads, values of a head
LIKE = torch.zeros(3, 2, 8)


def cache(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape or SHAPE, dtype=dtype)


def scales(*shape: int) -> torch.Tensor:
    return torch.ones(shape or SHAPE[:3])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_caches_of_floats_and_of_codes_with_scales_are_right(dtype: torch.dtype) -> None:
    check_caches(LIKE, cache(), cache(), None)
    check_caches(LIKE, cache(dtype=dtype), cache(dtype=dtype), (scales(), scales()))


@pytest.mark.parametrize(
    ("k", "v", "kv_scales", "sentence"),
    [
        (cache(5, 4, 16), cache(5, 4, 16), None, r"caches must both be \[N, B, Hk, 8\]"),
        (cache(), cache(6, 4, 2, 8), None, "caches must both be"),
        (cache(5, 4, 2, 16), cache(5, 4, 2, 16), None, "caches must both be"),
        (cache(5, 2, 4, 8).transpose(1, 2), cache(5, 2, 4, 8).transpose(1, 2), None, "must be contiguous"),
        (cache(dtype=torch.float16), cache(dtype=torch.float16), None, "float"),
        (cache(), cache(), (scales(), scales()), "codes must both be int8 or float8_e4m3fn"),
        (cache(dtype=torch.int8), cache(dtype=torch.uint8), (scales(), scales()), "codes must both be"),
        (cache(dtype=torch.int8), cache(dtype=torch.int8), (scales(), scales(5, 4, 1)), "kv_scales must both be"),
        (cache(dtype=torch.int8), cache(dtype=torch.int8), (scales(), scales().half()), "kv_scales must both be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    k: torch.Tensor, v: torch.Tensor, kv_scales: tuple[torch.Tensor, torch.Tensor] | None, sentence: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        check_caches(LIKE, k, v, kv_scales)
