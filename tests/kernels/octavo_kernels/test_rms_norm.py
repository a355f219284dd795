"""RMS norm against Hugging Face's, and the Triton kernel against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.rms_norm import add_rms_norm, reference, rms_norm

SHAPES = [(1, 1), (1, 576), (3, 7), (5, 64), (4, 1000), (2, 3, 64), (3, 5, 80), (2, 4096)]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def test_is_the_norm_of_llama_and_of_gemma() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    llama, gemma = LlamaRMSNorm(576, eps=1e-5), GemmaRMSNorm(576, eps=1e-6)
    x = torch.randn(9, 576) * 3
    with torch.inference_mode():
        llama.weight.uniform_(-2, 2)
        gemma.weight.uniform_(-2, 2)
        torch.testing.assert_close(rms_norm(x, llama.weight, 1e-5), llama(x), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rms_norm(x, gemma.weight + 1, 1e-6), gemma(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 300) * 300).to(dtype)  # squares overflow float16
    weight = torch.rand(300) + 0.5
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected.to(dtype), atol=TOLERANCE[dtype], rtol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_add_is_addition_then_norm(dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(5, 64).to(dtype), torch.randn(5, 64).to(dtype), torch.rand(64)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(x + residual, weight, 1e-5))


def test_of_a_constant_row_is_the_weight() -> None:
    weight = torch.arange(8.0)
    torch.testing.assert_close(rms_norm(torch.full((2, 8), -3.0), weight, 0.0), -weight.expand(2, 8))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_equals_reference(gpu, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = (torch.randn(2, *shape, device=device) * 5).to(dtype)
    weight = torch.rand(shape[-1], device=device) * 2
    kernels = gpu("rms_norm")
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **close)
    actual, expected = (m.add_rms_norm(x, residual, weight, 1e-5) for m in (kernels, reference))
    torch.testing.assert_close(actual, expected, **close)


def test_gpu_takes_heads_of_a_fused_projection(gpu, device: str) -> None:
    qkv = torch.randn(6, 5 * 16, device=device)
    q, weight = qkv[:, 16:64].view(6, 3, 16), torch.rand(16, device=device)
    torch.testing.assert_close(gpu("rms_norm").rms_norm(q, weight, 1e-5), reference.rms_norm(q, weight, 1e-5))


def test_gpu_takes_any_strides(gpu, device: str) -> None:
    x, weight = torch.randn(16, 6, device=device).T, torch.rand(16, device=device)
    torch.testing.assert_close(gpu("rms_norm").rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(7), "as long as the last dimension"),
        (torch.zeros(2, 8), torch.zeros(8).bfloat16(), "must be float32"),
        (torch.zeros(2, 8).long(), torch.zeros(8), "x must be float32, bfloat16 or float16"),
    ],
)
def test_refuses_what_does_not_fit(x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, 1e-5)


@pytest.mark.parametrize("residual", [torch.zeros(3, 8), torch.zeros(2, 8).half()], ids=["shape", "type"])
def test_add_refuses_another_residual(residual: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm(torch.zeros(2, 8), residual, torch.zeros(8), 1e-5)
