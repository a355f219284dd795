"""Root-mean-square normalisation (Zhang and Sennrich 2019), alone and fused with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.rms_norm import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    Args:
        x: [..., D], for example [T, D], or [T, H, D] for a per-head norm.
        weight: [D] float32 (for Gemma: the checkpoint's weight plus one).
        eps: added to the mean square.

    Returns:
        Same shape and type as `x`.

    Raises:
        ValueError: shapes or types do not fit.
    """
    _check(x, weight)
    return backend(reference.rms_norm, x)(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(rms_norm(x + residual), x + residual)`: the end of one sublayer and the start of the next.

    Args:
        x, residual: [..., D], of one shape and type.
        weight: [D] float32.
        eps: added to the mean square.

    Returns:
        The normed sum and the sum (the next residual), both like `x`. The sum is rounded to `x`'s type before it is
        normed, as if the two were computed apart.

    Raises:
        ValueError: shapes or types do not fit.
    """
    _check(x, weight)
    check_floats(x=x, residual=residual)
    if x.shape != residual.shape:
        raise ValueError(f"x is {tuple(x.shape)}, but residual is {tuple(residual.shape)}")
    return backend(reference.add_rms_norm, x)(x, residual, weight, eps)


def _check(x: Tensor, weight: Tensor) -> None:
    check_floats(x=x)
    if weight.ndim != 1 or weight.shape != x.shape[-1:] or weight.dtype != torch.float32:
        raise ValueError(
            f"weight must be float32 and as long as the last dimension of x {tuple(x.shape)}, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
