"""Quantised weights times activations in Triton: codes become numbers in registers, never a whole matrix in memory.

A matrix is one or two planes of codes and what turns them into weights:

    weight = scale code + offset        offset = -scale zero, or a minimum; scale and minimum may be codes themselves

Two kernels. For a few rows (decoding) `_gemv_kernel` multiplies codes with activations and applies scale and offset to
sums of products, in float32 on the ordinary units: what it costs is reading the codes. For more rows `_tile_kernel`
rounds weights to the activations' type and uses the matrix units. Where a matrix has too few outputs to occupy a GPU,
the columns are split over programs, whose sums a third kernel adds in order: no atomics, so equal inputs give equal
bits. How sums are split depends on the number of rows, unless `batch_invariant`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.linear.grouped import Float8Weight, GroupedWeight
from octavo_kernels.linear.quantized import QuantizedWeight

GEMV_ROWS = 4
"""Most rows that the matrix units are not used for."""

_PROGRAMS = 512
"""Programs that a product should have, if its columns give them: some four for each of a large GPU's processors."""
_LEAST_COLUMNS = 512
"""Of a split: fewer would be read faster than they are added up."""


@triton.jit
def scale_and_offset(
    row, column, k, inside, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """Of the groups that columns lie in; GROUP 0 is a whole row."""
    group = row * (k // GROUP) + column // GROUP if GROUP > 0 else row + column * 0
    unit = row * (k // UNIT) + column // UNIT if UNIT > 0 else group
    scale = tl.load(scale_ptr + group, mask=inside, other=0).to(tl.float32)
    if unit_scale_ptr is not None:
        scale *= tl.load(unit_scale_ptr + unit, mask=inside, other=0).to(tl.float32)
    if minimum_ptr is not None:
        offset = tl.load(minimum_ptr + group, mask=inside, other=0).to(tl.float32)
        if unit_minimum_ptr is not None:
            offset *= -tl.load(unit_minimum_ptr + unit, mask=inside, other=0).to(tl.float32)
    elif zero_ptr is not None:
        offset = -scale * tl.load(zero_ptr + group, mask=inside, other=0).to(tl.float32)
    else:
        offset = -scale * ZERO
    return scale, offset


@triton.jit
def _part(
    packed, part: tl.constexpr, high_ptr, row, byte, k, inside, LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr,
    FLOAT8: tl.constexpr,
):  # fmt: skip
    """Codes of one column of each byte of the low plane, with their bits of the high plane, as float32."""
    if FLOAT8:
        # e4m3's bits in a float16: its exponent's bias is 8 more (not every GPU converts this type itself)
        bits = packed.to(tl.uint16)
        half = ((bits & 128) << 8 | (bits & 127) << 7).to(tl.float16, bitcast=True)
        return half.to(tl.float32) * 256.0
    if LOW_BITS == 8:
        return packed.to(tl.float32)
    code = (packed >> (part * LOW_BITS)) & ((1 << LOW_BITS) - 1)
    if HIGH_BITS > 0:
        bit = (byte * (8 // LOW_BITS) + part) * HIGH_BITS
        high = tl.load(high_ptr + row * (k * HIGH_BITS // 8) + bit // 8, mask=inside, other=0)
        code |= ((high >> (bit % 8)) & ((1 << HIGH_BITS) - 1)) << LOW_BITS
    return code.to(tl.float32)


@triton.jit
def accumulate(
    x_ptr, x_offset, row, begin, end, k,
    low_ptr, high_ptr, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, ZERO: tl.constexpr,
    LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] float32: rows of x, which begin at `x_offset`, times rows `row` of the weights, over the
    columns [begin, end). `low_ptr` are the weights themselves where there is no scale."""
    STEP: tl.constexpr = 8 // LOW_BITS  # columns in a byte of the low plane
    GROUPS: tl.constexpr = BLOCK_K // GROUP if GROUP > 0 and GROUP < BLOCK_K else 1
    BYTES: tl.constexpr = BLOCK_K // GROUPS // STEP
    group = tl.arange(0, GROUPS)[None, :, None]
    within = tl.arange(0, BYTES)[None, None, :]
    row_of = row[:, None, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(begin, end, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + x_offset[:, None] + column[None, :], mask=(column < end)[None, :], other=0.0)
        first = start + group * (BLOCK_K // GROUPS)
        byte = first // STEP + within
        inside = byte * STEP < end
        packed = tl.load(low_ptr + row_of * (k // STEP) + byte, mask=inside, other=0)  # [BLOCK_N, GROUPS, BYTES]
        if scale_ptr is None:
            weight = packed
        else:
            scale, offset = scale_and_offset(
                row_of, first, k, first < end, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
                GROUP, UNIT, ZERO,
            )  # fmt: skip
            weight = _part(packed, 0, high_ptr, row_of, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)
            weight = (weight * scale + offset).to(x.dtype)
            if STEP > 1:
                other = _part(packed, STEP // 2, high_ptr, row_of, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)
                weight = tl.interleave(weight, (other * scale + offset).to(x.dtype))
            if STEP > 2:
                second = _part(packed, 1, high_ptr, row_of, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)
                fourth = _part(packed, 3, high_ptr, row_of, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)
                odd = tl.interleave((second * scale + offset).to(x.dtype), (fourth * scale + offset).to(x.dtype))
                weight = tl.interleave(weight, odd)
        # "ieee": float32 products stay float32 instead of TF32, whose 10 bits of mantissa cost 1e-3
        total = tl.dot(x, tl.trans(weight.reshape(BLOCK_N, BLOCK_K)), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["rows"])
def _tile_kernel(
    x_ptr, out_ptr, bias_ptr, rows, n, k, x_stride, split_columns,
    low_ptr, high_ptr, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, ZERO: tl.constexpr,
    LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Programs that run side by side share the weights, which are the larger part; x comes from the L2 cache.
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    begin = split * split_columns
    total = accumulate(
        x_ptr, tl.minimum(m, rows - 1).to(tl.int64) * x_stride, tl.minimum(column, n - 1).to(tl.int64),
        begin, tl.minimum(begin + split_columns, k), k,
        low_ptr, high_ptr, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
        GROUP, UNIT, ZERO, LOW_BITS, HIGH_BITS, FLOAT8, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    place = (split * rows + m[:, None]).to(tl.int64) * n + column[None, :]
    tl.store(out_ptr + place, total, mask=(m < rows)[:, None] & (column < n)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _gemv_kernel(
    x_ptr, out_ptr, bias_ptr, rows, n, k, x_stride, split_columns,
    low_ptr, high_ptr, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, ZERO: tl.constexpr,
    LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    STEP: tl.constexpr = 8 // LOW_BITS
    GROUPS: tl.constexpr = BLOCK_K // GROUP if GROUP > 0 and GROUP < BLOCK_K else 1
    BYTES: tl.constexpr = BLOCK_K // GROUPS // STEP
    m = tl.arange(0, BLOCK_M)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(output, n - 1).to(tl.int64)[:, None, None]
    x_offset = tl.minimum(m, rows - 1).to(tl.int64) * x_stride
    group = tl.arange(0, GROUPS)[None, :, None]
    within = tl.arange(0, BYTES)[None, None, :]
    split = tl.program_id(1)
    begin = split * split_columns
    end = tl.minimum(begin + split_columns, k)
    total = tl.zeros([BLOCK_M, BLOCK_N, GROUPS], tl.float32)
    for start in range(begin, end, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + x_offset[:, None] + column[None, :], mask=(column < end)[None, :], other=0.0)
        x = x.to(tl.float32).reshape(BLOCK_M, 1, GROUPS, BYTES * STEP)
        first = start + group * (BLOCK_K // GROUPS)
        byte = first // STEP + within
        inside = byte * STEP < end
        packed = tl.load(low_ptr + row * (k // STEP) + byte, mask=inside, other=0)  # [BLOCK_N, GROUPS, BYTES]
        scale, offset = scale_and_offset(
            row, first, k, first < end, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
            GROUP, UNIT, ZERO,
        )  # fmt: skip
        first_code = _part(packed, 0, high_ptr, row, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)
        if STEP == 1:
            products = first_code[None] * x
        elif STEP == 2:
            even, odd = tl.split(x.reshape(BLOCK_M, 1, GROUPS, BYTES, 2))
            products = first_code[None] * even
            products += _part(packed, 1, high_ptr, row, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)[None] * odd
        else:
            low, high = tl.split(x.reshape(BLOCK_M, 1, GROUPS, BYTES, 2, 2))  # of the last two: columns 0 2 and 1 3
            x0, x2 = tl.split(low)
            x1, x3 = tl.split(high)
            products = first_code[None] * x0
            products += _part(packed, 1, high_ptr, row, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)[None] * x1
            products += _part(packed, 2, high_ptr, row, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)[None] * x2
            products += _part(packed, 3, high_ptr, row, byte, k, inside, LOW_BITS, HIGH_BITS, FLOAT8)[None] * x3
        total += tl.sum(products, axis=3) * scale.reshape(1, BLOCK_N, GROUPS)
        total += tl.sum(x, axis=3) * offset.reshape(1, BLOCK_N, GROUPS)
    result = tl.sum(total, axis=2)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + output, mask=output < n, other=0.0).to(tl.float32)[None, :]
    place = (split * rows + m[:, None]).to(tl.int64) * n + output[None, :]
    tl.store(out_ptr + place, result, mask=(m < rows)[:, None] & (output < n)[None, :])


@triton.jit
def _add_splits_kernel(partial_ptr, bias_ptr, out_ptr, count, n, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + split * count + place, mask=mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + place % n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, total, mask=mask)


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: rows of x, outputs, and columns of one iteration."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def splits(self, m: int, n: int, k: int) -> tuple[int, int]:
        """Into how many parts the columns are cut for enough programs, and how many each but the last has."""
        programs = triton.cdiv(m, self.m) * triton.cdiv(n, self.n)
        wanted = max(1, min(_PROGRAMS // programs, k // _LEAST_COLUMNS))
        columns = triton.cdiv(triton.cdiv(k, self.k), wanted) * self.k
        return triton.cdiv(k, columns), columns


def tile_for(rows: int, dtype: torch.dtype, *, batch_invariant: bool = False) -> Tile:
    """The tile of the matrix units for so many rows; float32 has no matrix unit that keeps its precision."""
    if dtype == torch.float32:
        return Tile(16, 32, 64, 4, 2)
    if batch_invariant:
        return Tile(64, 64, 64, 4, 3)
    if rows <= 16:
        return Tile(16, 64, 64, 4, 4)
    if rows <= 64:
        return Tile(triton.next_power_of_2(rows), 64, 64, 4, 3)
    return Tile(128, 128, 64, 8, 2)


def operands(weight: QuantizedWeight | Tensor) -> dict[str, Any]:
    """The kernels' arguments that describe a matrix; a tensor is one of plain weights."""
    if isinstance(weight, Tensor):
        return _operands(weight, None)
    if isinstance(weight, Float8Weight):
        return _operands(weight.codes.view(torch.uint8), weight.scale, FLOAT8=True)
    k, groups = weight.shape[1], weight.scale.shape[1]
    group = k // groups if groups > 1 else 0
    if isinstance(weight, GroupedWeight):
        zero = 0 if weight.zero is not None else 1 << (weight.bits - 1)
        return _operands(weight.codes, weight.scale, zero_ptr=weight.zero, GROUP=group, LOW_BITS=weight.bits, ZERO=zero)
    return _operands(
        weight.low,
        weight.scale,
        high_ptr=weight.high,
        minimum_ptr=weight.minimum,
        unit_scale_ptr=weight.unit_scale,
        unit_minimum_ptr=weight.unit_minimum,
        GROUP=group,
        UNIT=0 if weight.unit_scale is None else k // weight.unit_scale.shape[1],
        LOW_BITS=weight.low_bits,
        HIGH_BITS=weight.high_bits,
        ZERO=weight.zero_code,
    )


def _operands(low: Tensor, scale: Tensor | None, **others: Any) -> dict[str, Any]:
    pointers = dict.fromkeys(("high_ptr", "zero_ptr", "minimum_ptr", "unit_scale_ptr", "unit_minimum_ptr"))
    constants = {"GROUP": 0, "UNIT": 0, "ZERO": 0, "LOW_BITS": 8, "HIGH_BITS": 0, "FLOAT8": False}
    return {"low_ptr": low, "scale_ptr": scale} | pointers | constants | others


def quantized_linear(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    *,
    batch_invariant: bool = False,
) -> Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    if rows <= GEMV_ROWS and not batch_invariant:
        kernel, tile = _gemv_kernel, Tile(triton.next_power_of_2(rows), 16, 256, 4, 3)
    else:
        kernel, tile = _tile_kernel, tile_for(rows, x.dtype, batch_invariant=batch_invariant)
    splits, columns = tile.splits(1 if batch_invariant else rows, n, k)
    out = torch.empty(rows, n, dtype=x.dtype, device=x.device)
    partial = out if splits == 1 else torch.empty(splits, rows, n, dtype=torch.float32, device=x.device)
    outputs = triton.cdiv(n, tile.n)
    kernel[(outputs, splits) if kernel is _gemv_kernel else (triton.cdiv(rows, tile.m), outputs, splits)](
        x,
        partial,
        bias if splits == 1 else None,
        rows,
        n,
        k,
        x.stride(0),
        columns,
        **operands(weight),
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        _add_splits_kernel[(triton.cdiv(rows * n, 1024),)](partial, bias, out, rows * n, n, SPLITS=splits, BLOCK=1024)
    return out
