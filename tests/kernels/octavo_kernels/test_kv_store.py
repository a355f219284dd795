"""KV store against assignment slot by slot, and the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.kv_store import kv_store, reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# tokens, KV heads, head size, tokens per block
SHAPES = [(1, 1, 1, 1), (5, 3, 64, 16), (9, 1, 80, 32), (3, 8, 96, 16), (20, 2, 6, 4)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """k and v as views of one fused projection, two caches and random slots."""
    tokens, heads, dim, block = shape
    k, v = torch.randn(tokens, 3, heads, dim).to(device, dtype)[:, 1:].unbind(1)
    k_cache, v_cache = torch.randn(2, 7, block, heads, dim).to(device, dtype)
    return {
        "k": k,
        "v": v,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "slots": torch.randperm(7 * block)[:tokens].to(device),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_writes_its_slots_and_no_others(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = inputs(shape, dtype)
    caches = x["k_cache"].clone(), x["v_cache"].clone()
    for token, slot in enumerate(x["slots"].tolist()):
        for cache, value in zip(caches, (x["k"], x["v"]), strict=True):
            cache[slot // shape[3], slot % shape[3]] = value[token]
    kv_store(**x)
    assert torch.equal(x["k_cache"], caches[0])
    assert torch.equal(x["v_cache"], caches[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_equals_reference(gpu, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = inputs(shape, dtype, device)
    expected = x | {"k_cache": x["k_cache"].clone(), "v_cache": x["v_cache"].clone()}
    reference.kv_store(**expected)
    gpu("kv_store").kv_store(**x)
    assert torch.equal(x["k_cache"], expected["k_cache"])
    assert torch.equal(x["v_cache"], expected["v_cache"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(4, 3, 8)}, "k and v must both"),
        ({"k": torch.zeros(5, 3, 8).half()}, "v is torch.float32"),
        ({"k_cache": torch.zeros(7, 4, 3, 8).half()}, "k_cache is torch.float16"),
        ({name: torch.zeros(7, 4, 2, 8) for name in ("k_cache", "v_cache")}, "the caches have 2 heads, k and v 3"),
        ({"kv_scales": (torch.zeros(7, 4, 3),) * 2}, "codes must both be int8 or float8"),
        ({"k": torch.zeros(5, 3, 16)[..., ::2]}, "contiguous"),
        ({"v_cache": torch.zeros(7, 4, 3, 9)}, "caches must both"),
        ({"k_cache": torch.zeros(4, 7, 3, 8).transpose(0, 1)}, "caches must be contiguous"),
        ({"slots": torch.zeros(5, dtype=torch.int32)}, "int64"),
        ({"slots": torch.zeros(4, dtype=torch.int64)}, r"slots must be \[5\]"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kv_store(**(inputs((5, 3, 8, 4), torch.float32) | change))


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_stores_the_codes_of_the_reference(gpu, device: str, shape: tuple[int, ...], codes: torch.dtype) -> None:
    x = inputs(shape, torch.float32, device)
    x["k"][0] *= 1e-30
    x["v"][0, 0] = 0
    x["k"][-1, -1, -1] = torch.inf
    x["v"][-1, -1, 0] = torch.nan
    caches = [torch.ones(7, shape[3], *shape[1:3], device=device).to(codes) for _ in range(2)]
    x |= {
        "k_cache": caches[0],
        "v_cache": caches[1],
        "kv_scales": tuple(torch.ones(2, *caches[0].shape[:3], device=device)),
    }
    copies = {name: x[name].clone() for name in ("k_cache", "v_cache")}
    expected = x | copies | {"kv_scales": tuple(scales.clone() for scales in x["kv_scales"])}
    reference.kv_store(**expected)
    gpu("kv_store").kv_store(**x)
    for cache in ("k_cache", "v_cache"):
        assert torch.equal(x[cache].view(torch.uint8), expected[cache].view(torch.uint8))
    torch.testing.assert_close(x["kv_scales"], expected["kv_scales"], equal_nan=True, rtol=2e-7, atol=0)
    assert x["kv_scales"][0].isnan().sum() == x["kv_scales"][1].isnan().sum() == 1


def test_float8_codes_are_the_nearest(gpu, device: str) -> None:
    x = torch.cat((torch.linspace(-448, 448, 4001), torch.linspace(-0.03, 0.03, 4001), torch.tensor([31.5, 2**-10])))
    x = torch.cat((x, x.to(torch.float8_e4m3fn).float() * (1 + 2**-4))).clamp(-448, 448).to(device)  # ties
    heads = torch.cat((x[:, None], torch.full((len(x), 1), 448.0, device=device)), 1)[:, None]  # scales of 1
    k_cache, v_cache = torch.zeros(2, len(x), 1, 1, 2, device=device).to(torch.float8_e4m3fn)
    scales = tuple(torch.zeros(2, len(x), 1, 1, device=device))
    for first in range(0, len(x), 4001):
        part = slice(first, first + 50) if device == "cpu" else slice(first, first + 4001)
        slots = torch.arange(len(x), device=device)[part]
        gpu("kv_store").kv_store(heads[part], heads[part], k_cache, v_cache, slots, scales)
        assert torch.equal(k_cache[part, 0, 0, 0].float(), x[part].to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(("codes", "largest"), [(torch.int8, 127), (torch.float8_e4m3fn, 448)], ids=str)
def test_a_head_that_is_not_finite_is_nan(codes: torch.dtype, largest: float) -> None:
    x = torch.tensor([[1.0, -2.0], [torch.inf, 1.0], [1.0, torch.nan], [0.0, 0.0]])
    coded, scales = reference.quantize(x, codes)
    assert scales[:, 0].isnan().tolist() == [False, True, True, False]
    assert coded[0, 1].float() == -largest
    assert torch.equal(coded[1:].float(), torch.zeros(3, 2))


def test_quantize_keeps_every_value_within_half_a_scale() -> None:
    x = torch.randn(9, 3, 24) * torch.logspace(-6, 6, 9)[:, None, None]
    x[4] = 0
    codes, scales = reference.quantize(x)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.int8, x.shape, (9, 3, 1))
    assert ((codes * scales - x).abs() <= 0.501 * scales).all()
    assert torch.equal(codes.abs().amax(-1), torch.where(x.abs().amax(-1) > 0, 127, 0).to(torch.int8))
