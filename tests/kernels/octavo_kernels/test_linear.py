"""Packed linear layers: the layout against GGUF's own definition, the kernels against the reference and each other."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.linear import FORMATS, PackedWeight, linear, reference
from octavo_kernels.linear.formats import FLOATS, GROUPED, Precision
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use

gguf = pytest.importorskip("gguf.quants")

LEVELS = supported_levels()
if "avx512" in LEVELS:
    LEVELS.append("amx-emulated")
FLOAT_TYPES = [torch.float32, torch.float16, torch.bfloat16]
HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}
"""Where a block's float16 numbers lie; all others have one at its start."""


def blocks(name: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    """Random rows of GGUF blocks: any codes and integer scales; float16 ones of both signs, some subnormal or 0."""
    random = np.random.default_rng(seed)
    units, size = k // GROUPED[name].unit, GROUPED[name].block_bytes
    out = random.integers(0, 256, (n, units, size), dtype=np.uint8)
    if name == "MXFP4":
        out[..., 0] = random.integers(110, 134, (n, units))  # exponents plus 127
        return out.reshape(n, -1)
    for at in HALVES.get(name, (0,)):
        scale = random.standard_normal((n, units, 1)) * random.choice(
            [0.02, 1e-6, 0], (n, units, 1), p=[0.9, 0.05, 0.05]
        )
        out[..., at : at + 2] = scale.astype(np.float16).view(np.uint8)
    return out.reshape(n, -1)


def weight_of(name: str, n: int, k: int) -> PackedWeight:
    if name in GROUPED:
        return PackedWeight.from_blocks(blocks(name, n, k), name)
    types = dict(zip(FLOATS, [torch.float32, torch.float16, torch.bfloat16], strict=True))
    return PackedWeight.from_tensor(torch.randn(n, k, generator=torch.manual_seed(n)).to(types[name]))


def dequantized(name: str, rows: np.ndarray) -> torch.Tensor:
    if name in ("Z4", "Z8"):
        blocks = rows.reshape(len(rows), -1, GROUPED[name].block_bytes)
        scale, zero, codes = blocks[..., :2].copy().view(np.float16), blocks[..., 2:3], blocks[..., 3:]
        codes = np.concatenate([codes & 15, codes >> 4], -1) if name == "Z4" else codes
        values = scale.astype(np.float64) * (codes.astype(np.float64) - zero)
        return torch.from_numpy(values.astype(np.float32).reshape(len(rows), -1)) + 0.0  # no negative zeros
    return torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType[name]))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@functools.cache
def library(level: str) -> Library:
    try:
        return Library(level)
    except NoCompiler:
        pytest.skip("no C++ compiler")


@pytest.fixture(params=LEVELS)
def native(request: pytest.FixtureRequest):
    """Each instruction set that this CPU has, in turn."""
    chosen = library(request.param)
    with use(chosen):
        yield chosen
    chosen.set_threads(1)


@pytest.mark.parametrize("name", GROUPED)
def test_packing_loses_nothing(name: str) -> None:
    rows = blocks(name, 37, 512)
    weight = PackedWeight.from_blocks(rows, name)
    expected = dequantized(name, rows)
    assert same_bits(reference.dequantize(weight.data, name, 37, 512), expected)
    with use(None):
        assert same_bits(weight.rows(torch.tensor([36, 0, 17])), expected[[36, 0, 17]])


@pytest.mark.parametrize("name", GROUPED)
def test_packing_expands_nothing(name: str) -> None:
    rows = blocks(name, 32, 512)
    assert PackedWeight.from_blocks(rows, name).data.size <= rows.size * (1.04 if name == "Q3_K" else 1)


@pytest.mark.parametrize("name", GROUPED)
def test_kernels_read_exactly_what_gguf_defines(native: Library, name: str) -> None:
    rows = blocks(name, 37, 512, seed=1)
    assert same_bits(PackedWeight.from_blocks(rows, name).rows(torch.arange(37)), dequantized(name, rows))


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
@pytest.mark.parametrize("k", [8, 32, 100])
def test_kernels_read_float_weights_as_they_are(native: Library, dtype: torch.dtype, k: int) -> None:
    weight = torch.randn(21, k).to(dtype)
    packed = PackedWeight.from_tensor(weight)
    assert torch.equal(packed.rows(torch.arange(21)), weight.float())
    assert torch.equal(reference.dequantize(packed.data, packed.format, 21, k), weight.float())


@pytest.mark.parametrize("name", GROUPED)
def test_int8_equals_the_reference(native: Library, name: str) -> None:
    weight, x, bias = weight_of(name, 40, 768), torch.randn(7, 768) * 3, torch.randn(40)
    expected = reference.linear_int8(x, weight.data, name, 40, bias)
    actual = linear(x, weight, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert (actual != expected).float().mean() < 0.01  # the reference rounds twice, rarely


@pytest.mark.parametrize("name", [*GROUPED, "BF16"])
def test_twice_adds_the_product_with_what_rounding_left(native: Library, name: str) -> None:
    weight, x, bias = weight_of(name, 40, 768), torch.randn(7, 768), torch.randn(40)
    rounded = reference.rounded_bf16(x) if name == "BF16" else reference.rounded_int8(x)
    parts = linear(x, weight, bias), linear(x - rounded, weight)
    assert same_bits(linear(x, weight, bias, precision=Precision.TWICE), parts[0] + parts[1])
    exact = linear(x, weight, bias, precision=Precision.EXACT)
    assert (parts[0] + parts[1] - exact).norm() < 1e-4 * exact.norm()  # 0.5e-5 to 4e-5


@pytest.mark.parametrize("name", GROUPED)
def test_int8_is_close_to_the_dequantised_product(name: str) -> None:
    weight, x = weight_of(name, 64, 1024), torch.randn(8, 1024)
    expected = x @ weight.rows(torch.arange(64)).T
    assert (linear(x, weight) - expected).norm() < 0.01 * expected.norm()  # 0.0055 to 0.0065 for normal activations


@pytest.mark.parametrize("name", FORMATS)
def test_exact_is_the_dequantised_product(native: Library, name: str) -> None:
    weight, x, bias = weight_of(name, 40, 768), torch.randn(7, 768), torch.randn(40)
    wide = weight.rows(torch.arange(40)).double()
    bound = 768 * 2**-24 * (x.abs().double() @ wide.abs().T + bias.abs())
    error = linear(x, weight, bias, precision=Precision.EXACT) - (x.double() @ wide.T + bias)
    assert (error.abs() <= bound).all()


def test_bf16_weights_meet_activations_rounded_to_bf16(native: Library) -> None:
    weight, x = weight_of("BF16", 40, 768), torch.randn(7, 768)
    wide = weight.rows(torch.arange(40)).double()
    near = x.bfloat16().double()
    error = linear(x, weight) - near @ wide.T
    assert (error.abs() <= 768 * 2**-24 * (near.abs() @ wide.abs().T)).all()


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", FORMATS)
def test_instruction_sets_agree_bitwise(native: Library, name: str, precision: Precision) -> None:
    if name == "BF16" and native.level.startswith("amx") and precision is not Precision.EXACT:
        pytest.skip("AMX sums products of bf16 in an order of its own")
    weight, x = weight_of(name, 53, 768), torch.randn(23, 768)
    with use(library("portable")):
        expected = linear(x, weight, precision=precision)
    assert same_bits(linear(x, weight, precision=precision), expected)


@pytest.mark.parametrize("level", LEVELS[-2:])
@pytest.mark.parametrize("name", ["F32", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_row_has_the_same_bits_in_any_batch(name: str, level: str, data: st.DataObject) -> None:
    unit = 256 if name.endswith("K") else 32
    n, k = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 3000 // unit)) * unit
    weight, batch = weight_of(name, n, k), torch.randn(data.draw(st.integers(1, 80)), k)
    precision = data.draw(st.sampled_from(Precision))
    chosen = data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=20))
    native = library(level)
    with use(native):
        native.set_threads(data.draw(st.integers(1, 5)))
        whole = linear(batch, weight, precision=precision)
        native.set_threads(1)
        assert same_bits(linear(batch[chosen], weight, precision=precision), whole[chosen])


@pytest.mark.skipif("amx-emulated" not in LEVELS, reason="this CPU has no AVX-512")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_give_the_bits_of_vector_instructions(data: st.DataObject) -> None:
    """AMX for many rows of integer codes; its instructions are emulated here, on any number of threads."""
    name = data.draw(st.sampled_from(sorted(GROUPED)))
    unit = GROUPED[name].unit
    n, k = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 1600 // unit)) * unit
    weight, x = weight_of(name, n, k), torch.randn(data.draw(st.integers(1, 100)), k)
    bias = torch.randn(n) if data.draw(st.booleans()) else None
    precision = data.draw(st.sampled_from([Precision.FAST, Precision.TWICE]))
    with use(library("avx512")):
        expected = linear(x, weight, bias, precision=precision)
    tiles = library("amx-emulated")
    tiles.set_threads(data.draw(st.integers(1, 3)))
    with use(tiles):
        assert same_bits(linear(x, weight, bias, precision=precision), expected)


def test_long_rows_are_summed_in_the_same_order(native: Library) -> None:
    """16 rows of 8192 columns are worked on in several spans of columns, one row in a single one."""
    for name, precision in itertools.product(("Q4_1", "Q6_K", "BF16", "F32"), Precision):
        weight, x = weight_of(name, 33, 8192), torch.randn(16, 8192)
        whole = linear(x, weight, precision=precision)
        assert same_bits(torch.cat([linear(row[None], weight, precision=precision) for row in x]), whole)


def test_takes_bf16_rows_with_any_stride(native: Library) -> None:
    weight, wide = weight_of("Q4_1", 20, 64), torch.randn(5, 96).bfloat16()
    out = linear(wide[:, 32:], weight)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, linear(wide[:, 32:].float(), weight).bfloat16())


def test_takes_float16_through_the_reference() -> None:
    weight, x = weight_of("Q8_0", 20, 64), torch.randn(5, 64).half()
    torch.testing.assert_close(linear(x, weight), linear(x.float(), weight).half(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-35, 1e30])
def test_activations_of_any_size(native: Library, scale: float) -> None:
    weight, x = weight_of("Q4_0", 20, 64), torch.randn(2, 64) * scale
    expected = x.double() @ weight.rows(torch.arange(20)).double().T
    assert (linear(x, weight).double() - expected).norm() <= 0.02 * expected.norm() + 1e-29


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "BF16"])
@pytest.mark.parametrize("where", [0, 100, slice(None)], ids=str)
def test_nan_spoils_its_own_row(native: Library, name: str, where: int | slice) -> None:
    weight, x = weight_of(name, 20, 256), torch.randn(5, 256)
    spoilt = x.clone()
    spoilt[2, where] = float("nan")
    out = linear(spoilt, weight)
    assert out[2].isnan().all()
    others = [0, 1, 3, 4]
    assert same_bits(out[others], linear(x, weight)[others])


def test_no_rows() -> None:
    assert linear(torch.zeros(0, 64), weight_of("Q4_0", 20, 64)).shape == (0, 20)


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(2, 32), None, "x must be \\[R, 64\\]"),
        (torch.zeros(64, 2).T, None, "contiguous rows"),
        (torch.zeros(2, 64).long(), None, "x must be float32"),
        (torch.zeros(2, 64), torch.zeros(19), "bias must be \\[20\\] float32"),
        (torch.zeros(2, 64), torch.zeros(20).half(), "bias must be \\[20\\] float32"),
    ],
)
def test_refuses_what_does_not_fit(x: torch.Tensor, bias: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(x, weight_of("Q4_0", 20, 64), bias)


def test_refuses_weights_that_it_cannot_pack() -> None:
    with pytest.raises(ValueError, match="IQ4_NL is not one of the packed formats"):
        PackedWeight.from_blocks(np.zeros((4, 18), np.uint8), "IQ4_NL")
    with pytest.raises(ValueError, match="blocks of 20 bytes"):
        PackedWeight.from_blocks(np.zeros((4, 18), np.uint8), "Q4_1")
    with pytest.raises(ValueError, match="weight must be"):
        PackedWeight.from_tensor(torch.zeros(4, 4).double())
