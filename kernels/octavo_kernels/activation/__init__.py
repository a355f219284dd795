"""Gated activations of the MLP: a nonlinearity of the gate's half, multiplied by the other half (Shazeer 2020)."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.activation import reference
from octavo_kernels.dispatch import backend, check_floats


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` with `silu(x) = x sigmoid(x)`.

    Args:
        gate_up: [T, 2 I]: the gate's I values, then the other I.

    Returns:
        [T, I] of the same type.

    Raises:
        ValueError: shape or type does not fit.
    """
    _check(gate_up)
    return backend(reference.silu_mul, gate_up)(gate_up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up` with GELU's tanh approximation (Hugging Face's `gelu_pytorch_tanh`).

    Args:
        gate_up: [T, 2 I]: the gate's I values, then the other I.

    Returns:
        [T, I] of the same type.

    Raises:
        ValueError: shape or type does not fit.
    """
    _check(gate_up)
    return backend(reference.gelu_mul, gate_up)(gate_up)


def _check(gate_up: Tensor) -> None:
    check_floats(gate_up=gate_up)
    if gate_up.ndim != 2 or gate_up.shape[1] % 2 or gate_up.stride(1) != 1:
        raise ValueError(
            f"gate_up must be [T, 2 I] with contiguous rows, got {tuple(gate_up.shape)} strides {gate_up.stride()}"
        )
