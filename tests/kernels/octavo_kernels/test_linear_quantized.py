"""Quantised matrices on any device: GGUF's blocks, and the Triton kernels beside their reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from octavo_kernels.linear import reference
from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.formats import GROUPED
from octavo_kernels.linear.grouped import GroupedWeight, quantize_float8
from octavo_kernels.linear.quantized import QuantizedWeight, joined, quantized_linear

# Triton's interpreter holds bfloat16 as integers, and its tl.dot multiplies those.
HALVES = [torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
BLOCKS = [name for name in GROUPED if not name.startswith("Z")]


def random_blocks(name: str, n: int, k: int) -> np.ndarray:
    """Rows of any codes and integer scales; factors are small finite numbers of both signs."""
    form = GROUPED[name]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (n, k // form.unit, form.block_bytes), np.uint8)
    factors = random.normal(0, 0.01, (n, k // form.unit, 2)).astype(np.float16).view(np.uint8)
    if name == "MXFP4":
        blocks[..., 0] = random.integers(115, 128, blocks.shape[:2])  # exponents of two plus 127
    elif name in ("Q2_K", "Q3_K", "Q6_K"):
        size = 4 if name == "Q2_K" else 2
        blocks[..., -size:] = factors[..., :size]
    else:
        size = 4 if name.endswith(("_1", "4_K", "5_K")) else 2
        blocks[..., :size] = factors[..., :size]
    return blocks.reshape(n, -1)


def random_grouped(bits: int, n: int, k: int, group: int, *, zero: bool = True, dtype=torch.float16) -> GroupedWeight:
    codes = torch.randint(0, 2**bits, (n, k)).to(torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group)).to(torch.uint8)
    return GroupedWeight.from_codes(codes, bits, (torch.rand(n, k // group) * 0.02).to(dtype), zeros if zero else None)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_dequantise_as_gguf_says(name: str, monkeypatch) -> None:
    gguf = pytest.importorskip("gguf")
    monkeypatch.setattr("octavo_kernels.linear.blocks.CHUNK_VALUES", 2 * 512)  # two rows at a time
    blocks = random_blocks(name, 5, 512)
    weight = BlockWeight.from_blocks(blocks, name)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert torch.equal(weight.dequantize(), torch.from_numpy(expected))
    assert weight.shape == (5, 512)
    most = 1.3 if name == "MXFP4" else 1.2  # four-bit floats become integers of five bits
    assert weight.nbytes <= blocks.nbytes * most


def assert_multiplies(gpu, device, weight, rows, *, dtype=torch.float16, bias=True, **options):
    """Within the rounding of weights and results to `dtype`."""
    n, k = weight.shape
    x = torch.randn(rows, k).to(device, dtype)
    b = torch.randn(n).to(device, dtype) if bias else None
    on_device = weight.to(torch.device(device))
    out = gpu("linear").quantized_linear(x, on_device, b, **options)
    exact = reference.quantized_linear(x.double(), on_device.dequantize(torch.float64), b)
    assert out.dtype == dtype
    step = torch.finfo(dtype).eps
    sizes = x.double().abs() @ on_device.dequantize(torch.float64).abs().T
    assert ((out.double() - exact).abs() <= step * (exact.abs() + sizes) + 1e-6).all()
    return out


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", HALVES)
def test_blocks_are_multiplied(gpu, device, name, rows, dtype) -> None:
    assert_multiplies(gpu, device, BlockWeight.from_blocks(random_blocks(name, 37, 512), name), rows, dtype=dtype)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize(
    ("bits", "k", "group", "zero", "dtype"),
    [
        (4, 96, 32, True, torch.float16),
        (8, 90, 90, False, torch.float32),  # a scale per row
        (4, 80, 8, True, torch.float32),
        (8, 48, 16, True, torch.float16),
        (4, 384, 128, False, torch.float16),
    ],
)
def test_groups_are_multiplied(gpu, device, rows, bits, k, group, zero, dtype) -> None:
    weight = random_grouped(bits, 21, k, group, zero=zero)
    assert_multiplies(gpu, device, weight, rows, dtype=dtype, bias=rows == 2)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("dtype", HALVES)
def test_float8_is_multiplied(gpu, device, rows, dtype) -> None:
    weight = quantize_float8(torch.randn(40, 200) * torch.logspace(-3, 1, 40)[:, None])
    assert_multiplies(gpu, device, weight, rows, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 30])
def test_columns_are_split_over_programs(gpu, device, rows) -> None:
    weight = random_grouped(4, 24, 2080, 32)
    kernels = gpu("linear")
    splits, columns = kernels.tile_for(rows, torch.float16).splits(rows, *weight.shape)
    assert splits > 1
    assert (splits - 1) * columns < 2080 <= splits * columns
    assert_multiplies(gpu, device, weight, rows)


def test_batch_invariant_rows(gpu, device) -> None:
    kernels, weight = gpu("linear"), random_grouped(4, 24, 1056, 32).to(torch.device(device))
    x = torch.randn(70, 1056).half().to(device)
    whole = kernels.quantized_linear(x, weight, batch_invariant=True)
    for rows in (1, 20):
        assert torch.equal(kernels.quantized_linear(x[:rows], weight, batch_invariant=True), whole[:rows])


def test_strided_rows(gpu, device) -> None:
    weight, wide = random_grouped(8, 9, 64, 32), torch.randn(3, 100).half().to(device)
    expected = reference.quantized_linear(wide[:, :64].float(), weight.dequantize().to(device), None)
    out = gpu("linear").quantized_linear(wide[:, :64], weight.to(torch.device(device)))
    torch.testing.assert_close(out.float(), expected, atol=2e-3, rtol=2e-3)


def test_matrices_of_one_kind_become_one() -> None:
    parts = [random_grouped(4, n, 64, 32) for n in (5, 3)]
    both, x = joined(parts), torch.randn(2, 64)
    assert both is not None
    assert torch.equal(both.dequantize(), torch.cat([part.dequantize() for part in parts]))
    assert torch.equal(quantized_linear(x, both), x @ both.dequantize().T)
    assert joined([parts[0], random_grouped(4, 3, 64, 32, zero=False)]) is None
    assert joined([parts[0], random_grouped(4, 3, 64, 64)]) is None
    blocks = [BlockWeight.from_blocks(random_blocks(name, 4, 512), name) for name in ("Q4_K", "Q5_K", "Q4_K")]
    assert joined(blocks[:2]) is None
    assert joined([blocks[0], blocks[2]]) is not None


def test_refuses_shapes_that_do_not_fit() -> None:
    weight = random_grouped(4, 5, 64, 32)
    with pytest.raises(ValueError, match=r"x must be \[R, 64\]"):
        quantized_linear(torch.zeros(2, 32), weight)
    with pytest.raises(ValueError, match=r"bias must be \[5\]"):
        quantized_linear(torch.zeros(2, 64), weight, torch.zeros(4))


def launch(weight: QuantizedWeight, rows: int) -> None:
    from octavo_kernels.linear import gpu

    gpu.quantized_linear(torch.empty(rows, weight.shape[1], dtype=torch.bfloat16), weight)


def codes_of_128() -> GroupedWeight:
    scale = torch.empty(4096, 32, dtype=torch.float16)
    return GroupedWeight(4, torch.empty(4096, 2048, dtype=torch.uint8), scale, scale.to(torch.uint8))


def blocks(name: str) -> BlockWeight:
    return BlockWeight.from_blocks(random_blocks(name, 64, 4096), name)


LAUNCHES: dict[str, Callable[[], object]] = {
    "int4 x 4": lambda: launch(codes_of_128(), 4),
    "int4 x 300": lambda: launch(codes_of_128(), 300),
    "Q6_K x 1": lambda: launch(blocks("Q6_K"), 1),
    "Q3_K x 300": lambda: launch(blocks("Q3_K"), 300),
    "Q4_K x 16": lambda: launch(blocks("Q4_K"), 16),
    "fp8 x 300": lambda: launch(quantize_float8(torch.zeros(64, 4096)), 300),
}  # fmt: skip


@pytest.mark.slow
def test_the_kernels_compile_for_a_hopper(compile_launches) -> None:
    """Without spilling registers; many rows use its matrix instructions and load ahead."""
    found = compile_launches(__file__, 90)
    assert found.keys() == LAUNCHES.keys()
    for name, kernels in found.items():
        assert all(kernel.spilled == 0 for kernel in kernels), name
        if name.endswith("300"):
            assert kernels[0].matrix == "wgmma", name
            assert kernels[0].async_copies, name
