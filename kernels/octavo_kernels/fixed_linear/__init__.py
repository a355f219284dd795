"""A linear layer in which a row's result is bitwise independent of the other rows."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.fixed_linear import reference


def fixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, summed in an order that depends only on the weight's shape.

    Libraries choose different kernels, with different orders of summation, for different numbers of rows.

    Args:
        x: [T, K], its rows contiguous.
        weight: [N, K], contiguous, of the same type.
        bias: [N] of the same type.

    Returns:
        [T, N] of the same type.

    Raises:
        ValueError: shapes or types do not fit.
    """
    tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    check_floats(**tensors)
    if x.ndim != 2 or x.stride(1) != 1 or weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"x must be [T, K] with contiguous rows, weight [N, K]: {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if not weight.is_contiguous() or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(f"weight must be contiguous and bias [{len(weight)}]")
    return backend(reference.fixed_linear, x, cpu=False)(x, weight, bias)
