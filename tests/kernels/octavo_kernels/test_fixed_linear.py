"""The linear layer of one order: right, and a row's bits are its own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.fixed_linear import fixed_linear, reference

# A GPU sums three TF32 products for one of float32.
TOLERANCE = {torch.float32: 2e-5 if torch.cuda.is_available() else 5e-6, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
SHAPES = [(1, 5, 7), (3, 64, 64), (70, 33, 130), (2, 130, 48)]  # rows, outputs, inputs
# Triton's interpreter holds bfloat16 as integers, and its tl.dot multiplies those (3.6 to 3.9).
GPU_TYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    rows, outputs, inner = shape
    x, weight = torch.randn(rows, inner), torch.randn(outputs, inner) / inner**0.5
    return tuple(t.to(device, dtype) for t in (x, weight, torch.randn(outputs)))


@pytest.mark.parametrize("dtype", GPU_TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_is_a_linear_layer(gpu, device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias = inputs(shape, dtype, device)
    for b in (bias, None):
        expected = F.linear(x.float(), weight.float(), None if b is None else b.float()).to(dtype)
        actual = gpu("fixed_linear").fixed_linear(x, weight, b)
        torch.testing.assert_close(actual, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("back_end", ["reference", "gpu"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_gpu_rows_have_their_own_bits(gpu, device: str, row_by_row: None, back_end: str, shape) -> None:
    linear = (gpu("fixed_linear") if back_end == "gpu" else reference).fixed_linear
    x, weight, bias = inputs(shape, GPU_TYPES[-1] if device == "cuda" else torch.float32, device)
    together = linear(x, weight, bias)
    for rows in (slice(0, 1), slice(1, 2), slice(1, len(x)), slice(len(x) - 1, len(x))):
        assert torch.equal(linear(x[rows], weight, bias), together[rows])


def test_reads_rows_of_a_wider_matrix(gpu, device: str) -> None:
    x, weight, bias = inputs((5, 6, 48), torch.float32, device)
    wide = torch.cat((torch.full_like(x, torch.nan), x), 1)[:, 48:]
    actual, close = gpu("fixed_linear").fixed_linear(wide, weight, bias), TOLERANCE[torch.float32]
    torch.testing.assert_close(actual, F.linear(x, weight, bias), atol=close, rtol=close)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), None, r"weight \[N, K\]"),
        (torch.zeros(3, 2).T, torch.zeros(4, 3), None, "contiguous rows"),
        (torch.zeros(2, 3), torch.zeros(3, 4).T, None, "weight must be contiguous"),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3), r"bias \[4\]"),
        (torch.zeros(2, 3), torch.zeros(4, 3).half(), None, "weight is torch.float16"),
    ],
)
def test_refuses_what_does_not_fit(x, weight, bias, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_linear(x, weight, bias)
