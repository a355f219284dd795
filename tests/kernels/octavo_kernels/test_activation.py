"""Gated activations against PyTorch in float64, and the Triton kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from octavo_kernels import activation
from octavo_kernels.activation import gelu_mul, reference, silu_mul

TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = [(1, 2), (1, 3072), (5, 14), (3, 2050)]  # tokens, twice the width


def inputs(shape: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    x = torch.randn(shape) * 5
    x[0, 0] = -100.0  # exp(100) is inf in float32
    return x.to(device, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gates_the_second_half(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = inputs(shape, dtype)
    gate, up = x.double().chunk(2, -1)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(silu_mul(x), (F.silu(gate) * up).to(dtype), **close)
    torch.testing.assert_close(gelu_mul(x), (F.gelu(gate, approximate="tanh") * up).to(dtype), **close)


@pytest.mark.parametrize("op", ["silu_mul", "gelu_mul"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_equals_reference(gpu, device: str, shape: tuple[int, int], dtype: torch.dtype, op: str) -> None:
    x = inputs(shape, dtype, device)
    actual, expected = (getattr(back_end, op)(x) for back_end in (gpu("activation"), reference))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_gpu_takes_strided_rows(gpu, device: str) -> None:
    x = torch.randn(4, 20, device=device)[:, 3:17]
    torch.testing.assert_close(gpu("activation").silu_mul(x), reference.silu_mul(x))


@pytest.mark.parametrize("op", ["silu_mul", "gelu_mul"])
@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3), torch.zeros(4), torch.zeros(4, 2).T], ids=["odd", "vector", "strides"]
)
def test_refuses_what_does_not_fit(x: torch.Tensor, op: str) -> None:
    with pytest.raises(ValueError, match="gate_up must be"):
        getattr(activation, op)(x)
