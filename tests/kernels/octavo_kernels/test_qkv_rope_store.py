"""The fused pass from a layer's projection to attention against the ops it fuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo_kernels.kv_store.reference import quantize
from octavo_kernels.qkv_rope_store import HeadNorms, qkv_rope_store, reference

TOLERANCE = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
# tokens, query heads, KV heads, head size, rotated part of it
SHAPES = [(1, 1, 1, 2, 2), (5, 9, 3, 64, 64), (3, 7, 1, 80, 20), (2, 8, 1, 96, 96), (3, 3, 3, 6, 4)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", codes: Any = None) -> dict[str, Any]:
    tokens, q_heads, kv_heads, dim, rot_dim = shape
    caches = torch.zeros(2, 7, 16, kv_heads, dim, device=device).to(codes or dtype)
    angles = torch.rand(50, rot_dim // 2) * 6
    return {
        "qkv": (torch.randn(tokens, (q_heads + 2 * kv_heads) * dim) * 3).to(device, dtype),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "slots": torch.randperm(7 * 16)[:tokens].to(device),
        "positions": torch.randint(0, 50, (tokens,)).to(device),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), -1).to(device),
        "norms": HeadNorms(torch.rand(dim).to(device) * 2, torch.rand(dim).to(device) * 2, 1e-5),
        "kv_scales": tuple(torch.zeros(2, 7, 16, kv_heads, device=device)) if codes else None,
    }


def copied(x: dict[str, Any]) -> dict[str, Any]:
    copies = {name: value.clone() for name, value in x.items() if isinstance(value, torch.Tensor)}
    scales = x["kv_scales"] and tuple(scale.clone() for scale in x["kv_scales"])
    return x | copies | {"kv_scales": scales}


def test_splits_norms_turns_and_stores() -> None:
    x = inputs((5, 9, 3, 64, 64), torch.float32)
    x["norms"] = None
    heads = x["qkv"].clone().view(5, 15, 64)
    q = qkv_rope_store(**x)
    angles = x["cos_sin"][x["positions"]]
    turn = torch.complex(*angles.chunk(2, -1))[:, None]
    expected = torch.complex(*heads[:, :12].chunk(2, -1)) * turn
    expected = torch.cat((expected.real, expected.imag), -1)
    torch.testing.assert_close(q, expected[:, :9])
    torch.testing.assert_close(x["k_cache"].flatten(0, 1)[x["slots"]], expected[:, 9:])
    assert torch.equal(x["v_cache"].flatten(0, 1)[x["slots"]], heads[:, 12:])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_equals_reference(gpu, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for left_out in ((), ("norms",), ("cos_sin",)):
        x = inputs(shape, dtype, device) | dict.fromkeys(left_out)
        expected = copied(x)
        queries = reference.qkv_rope_store(**expected)
        close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
        torch.testing.assert_close(gpu("qkv_rope_store").qkv_rope_store(**x), queries, **close)
        for cache in ("k_cache", "v_cache"):
            torch.testing.assert_close(x[cache], expected[cache], **close)


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_stores_the_codes_of_the_reference(gpu, device: str, shape: tuple[int, ...], codes: torch.dtype) -> None:
    x = inputs(shape, torch.float16, device, codes) | {"norms": None}
    expected = copied(x)
    reference.qkv_rope_store(**expected)
    gpu("qkv_rope_store").qkv_rope_store(**x)
    for cache, scales in zip(("k_cache", "v_cache"), (0, 1), strict=True):
        actual, wanted = ((y[cache].float() * y["kv_scales"][scales][..., None]) for y in (x, expected))
        torch.testing.assert_close(actual, wanted, atol=0.1, rtol=1 / 8)  # a rounding may fall to the next code
        assert (actual == wanted).float().mean() > 0.99


def test_stores_codes_of_values() -> None:
    x = inputs((5, 2, 1, 8, 8), torch.float32, codes=torch.int8)
    values = x["qkv"].view(5, 4, 8)[:, 3:].clone()
    qkv_rope_store(**x)
    codes, scales = quantize(values)
    assert torch.equal(x["v_cache"].flatten(0, 1)[x["slots"]], codes)
    assert torch.equal(x["kv_scales"][1].flatten(0, 1)[x["slots"]], scales[..., 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(5, 33)}, "no heads beside"),
        ({"qkv": torch.zeros(5, 16)}, "no heads beside"),
        ({"qkv": torch.zeros(32, 5).T}, "contiguous"),
        ({"v_cache": torch.zeros(7, 16, 1, 9)}, "caches must both"),
        ({"k_cache": torch.zeros(7, 16, 1, 8).half()}, "k_cache is torch.float16"),
        ({"kv_scales": (torch.zeros(7, 16, 1),) * 2}, "codes must both be int8 or float8"),
        ({"slots": torch.zeros(5, dtype=torch.int32)}, r"slots must be \[5\] int64"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, r"positions must be \[5\] int64"),
        ({"cos_sin": torch.zeros(5, 10)}, "at most 8"),
        ({"norms": HeadNorms(torch.zeros(8), torch.zeros(7), 1e-5)}, r"norms must be \[8\] float32"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        qkv_rope_store(**(inputs((5, 2, 1, 8, 8), torch.float32) | change))
