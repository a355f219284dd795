"""Reference of the product of a LoRA adapter."""

from __future__ import annotations

from torch import Tensor


def lora(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(x A^T) B^T in float32.

    Args:
        x: [T, in] of any type.
        a: [rank, in] float32.
        b: [out, rank] float32, times the adapter's scale.

    Returns:
        [T, out] float32.
    """
    return x.float() @ a.T @ b.T
