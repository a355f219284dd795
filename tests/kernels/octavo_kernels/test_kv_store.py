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


def test_quantize_keeps_every_value_within_half_a_scale() -> None:
    x = torch.randn(9, 3, 24) * torch.logspace(-6, 6, 9)[:, None, None]
    x[4] = 0
    codes, scales = reference.quantize(x)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.int8, x.shape, (9, 3, 1))
    assert ((codes * scales - x).abs() <= 0.501 * scales).all()
    assert torch.equal(codes.abs().amax(-1), torch.where(x.abs().amax(-1) > 0, 127, 0).to(torch.int8))
