"""`quantized_linear`: activations times a quantised matrix of any kind, on any device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo_kernels.dispatch import check_floats, use_gpu
from octavo_kernels.linear import reference
from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.grouped import Float8Weight, GroupedWeight

QuantizedWeight = GroupedWeight | Float8Weight | BlockWeight


def quantized_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None, *, batch_invariant: bool = False
) -> Tensor:
    """`x W^T + bias`.

    On a GPU, codes are converted to weights in registers, and sums are in float32. Elsewhere the matrix is dequantised
    to `x`'s type for this product only.

    Args:
        x: [R, k].
        weight: [n, k].
        bias: [n] of a float type.
        batch_invariant: on a GPU, make a row's result bitwise independent of the other rows: one tile shape serves any
            number of rows, which makes decoding slower.

    Returns:
        [R, n] of `x`'s type.

    Raises:
        ValueError: shapes or types do not fit.
    """
    check_floats(x=x)
    n, k = weight.shape
    if x.ndim != 2 or x.shape[1] != k:
        raise ValueError(f"x must be [R, {k}], got {list(x.shape)}")
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias must be [{n}], got {list(bias.shape)}")
    if isinstance(weight, GroupedWeight) and weight.order is not None:
        x, weight = x[:, weight.order], replace(weight, order=None)
    if use_gpu(x) and len(x) and has_even_groups(weight):
        from octavo_kernels.linear import gpu

        return gpu.quantized_linear(x, weight, bias, batch_invariant=batch_invariant)
    return reference.quantized_linear(x, weight.dequantize(x.dtype), bias)


def joined(weights: list[QuantizedWeight]) -> QuantizedWeight | None:
    """Stack matrices by rows into one; None if they are of different kinds."""
    first, *rest = weights
    if any(_kind(other) != _kind(first) for other in rest) or getattr(first, "order", None) is not None:
        return None
    tensors: dict[str, Any] = {name: torch.cat([w.tensors[name] for w in weights]) for name in first.tensors}
    return replace(first, **tensors)


def rows_of(weight: QuantizedWeight, rows: slice | Tensor) -> QuantizedWeight:
    """Some rows of a matrix: a slice, or [n] int64."""
    tensors: dict[str, Any] = {name: x if name == "order" else x[rows] for name, x in weight.tensors.items()}
    return replace(weight, **tensors)


def _kind(weight: QuantizedWeight) -> tuple[object, ...]:
    """The properties in which matrices must agree to be stacked: all but the number of rows."""
    plain = (getattr(weight, name, None) for name in ("bits", "zero_code", "low_bits", "high_bits"))
    return type(weight), *plain, {name: (x.shape[1:], x.dtype) for name, x in weight.tensors.items()}


def has_even_groups(weight: QuantizedWeight) -> bool:
    """Whether a group of columns that shares a scale is a whole row or a power of two, as tiles require."""
    groups = weight.scale.shape[1]
    group = weight.shape[1] // groups
    return groups == 1 or (group >= 8 and group & (group - 1) == 0)
