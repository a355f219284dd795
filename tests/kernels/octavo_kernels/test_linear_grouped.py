"""Codes with scales for groups of columns: their layout, rounding, and the packed layout made from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.linear import PackedWeight, linear
from octavo_kernels.linear.formats import Precision
from octavo_kernels.linear.grouped import (
    GroupedWeight,
    quantize_float8,
    quantize_grouped,
)
from octavo_kernels.linear.quantized import quantized_linear


def random_weight(bits, n, groups, group, *, zero, order=False, dtype=torch.float16, seed=0):
    """Any codes and zero points; also the matrix that they stand for, in float64."""
    generator = torch.Generator().manual_seed(seed)
    k = groups * group
    codes = torch.randint(0, 2**bits, (n, k), generator=generator)
    scale = (torch.rand(n, groups, generator=generator) * 0.02).to(dtype)
    zeros = torch.randint(0, 2**bits, (n, groups), generator=generator) if zero else None
    places = torch.randperm(k, generator=generator) if order else None
    middle = 2 ** (bits - 1) if zeros is None else zeros.double().repeat_interleave(group, 1)
    stored = (codes.double() - middle) * scale.double().repeat_interleave(group, 1)
    matrix = torch.empty_like(stored)
    matrix[:, slice(None) if places is None else places] = stored
    eight = None if zeros is None else zeros.to(torch.uint8)
    return GroupedWeight.from_codes(codes.to(torch.uint8), bits, scale, eight, places), matrix


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    n=st.integers(1, 40),
    groups=st.integers(1, 5),
    group=st.sampled_from([2, 32, 64, 128]),
    zero=st.booleans(),
    order=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_dequantises_by_definition(bits, n, groups, group, zero, order, dtype) -> None:
    weight, matrix = random_weight(bits, n, groups, group, zero=zero, order=order, dtype=dtype)
    assert weight.shape == (n, groups * group)
    torch.testing.assert_close(weight.dequantize(), matrix.float(), rtol=2e-7, atol=0)
    x = torch.randn(3, groups * group)
    order_of_sums = 2e-6 * float((x.abs() @ matrix.float().abs().T).max())  # what 640 float32 products may differ by
    torch.testing.assert_close(quantized_linear(x, weight), x @ matrix.float().T, rtol=1e-4, atol=order_of_sums)


@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_packs_without_rounding(bits, group, zero) -> None:
    """Every value survives exactly, and both ways of the CPU kernel multiply with it."""
    weight, matrix = random_weight(bits, 37, 3, group, zero=zero)
    packed = PackedWeight.from_grouped(weight)
    assert packed.format == {(4, False): "Q4_0", (8, False): "Q8_0", (4, True): "Z4", (8, True): "Z8"}[bits, zero]
    assert torch.equal(packed.rows(torch.arange(37)), matrix.float())
    x = torch.randn(5, 3 * group)
    expected = (x.double() @ matrix.T).float()
    torch.testing.assert_close(linear(x, packed, precision=Precision.EXACT), expected, rtol=1e-4, atol=1e-5)
    assert (linear(x, packed) - expected).norm() < 0.01 * expected.norm()


def test_a_float32_scale_is_rounded_to_float16() -> None:
    weight, matrix = random_weight(8, 20, 2, 32, zero=False, dtype=torch.float32)
    rows = PackedWeight.from_grouped(weight).rows(torch.arange(20))
    assert not torch.equal(rows, matrix.float())
    torch.testing.assert_close(rows, matrix.float(), rtol=2**-11, atol=0)


@pytest.mark.parametrize(("group", "order"), [(48, False), (16, False), (32, True)])
def test_refuses_what_cannot_be_packed(group, order) -> None:
    weight, _ = random_weight(4, 8, 2, group, zero=False, order=order)
    with pytest.raises(ValueError, match="cannot be packed"):
        PackedWeight.from_grouped(weight)


@pytest.mark.parametrize(
    ("codes", "bits", "scale", "zero"),
    [((4, 64), 4, (3, 2), None), ((4, 64), 4, (4, 3), None), ((4, 64), 4, (4, 2), (4, 1)), ((4, 64), 3, (4, 2), None)],
)
def test_refuses_shapes_that_do_not_fit(codes, bits, scale, zero) -> None:
    zeros = None if zero is None else torch.zeros(zero, dtype=torch.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        GroupedWeight.from_codes(torch.zeros(codes, dtype=torch.uint8), bits, torch.ones(scale), zeros)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounds_to_nearest(bits, group, symmetric) -> None:
    weight = torch.randn(20, 256, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-3, 1, 20)[:, None]
    weight[3] = 0
    weight[4] = weight[4].abs() + 1  # zero lies outside
    quantized = quantize_grouped(weight, bits, group, symmetric=symmetric)
    step = quantized.scale.float().repeat_interleave(group, 1)
    error = (quantized.dequantize() - weight).abs()
    # Half a step, and what the ends of the range lose where the scale was rounded down: half its last place each code,
    # 2**-11 of a normal float16 and 2**-25 of one below 2**-14.
    cut = 2**bits * (step * 2**-11).clamp(min=2**-25)
    assert (error <= step * 0.5 * (1 + 1e-5) + cut).all()
    assert quantized.nbytes < 256 * 20 * bits / 8 * (1 + 3.1 / group * 8 / bits)


def test_float8_has_three_bits_of_mantissa() -> None:
    weight = torch.randn(20, 100) * torch.logspace(-3, 1, 20)[:, None]
    weight[3] = 0
    quantized = quantize_float8(weight)
    assert quantized.nbytes == 20 * 100 + 20 * 4
    top = weight.abs().amax(1, keepdim=True)
    assert ((quantized.dequantize() - weight).abs() <= weight.abs() * 2**-4 + top * 2**-17).all()
