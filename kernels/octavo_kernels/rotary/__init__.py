"""Rotary position embedding (Su et al. 2021), in the half-split layout of GPT-NeoX and Hugging Face."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.rotary import reference


def rotary_(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    """Rotate the first `rot_dim` values of every head of `q` and `k` in place.

    With h = rot_dim / 2, value i of the first h and value i + h turn as a pair by the angle of `cos_sin[position]`:
    `(a, b) -> (a cos - b sin, b cos + a sin)`.

    Args:
        q: [T, Hq, D]; may be a strided view of a fused projection, with its last dimension contiguous.
        k: [T, Hk, D]; likewise.
        positions: [T] int32 or int64, each below P.
        cos_sin: [P, rot_dim] float32: h cosines, then h sines; rot_dim is even and at most D, the rest of each head
            stays as it is.

    Raises:
        ValueError: shapes or types do not fit.
    """
    _check(q, k, positions, cos_sin)
    backend(reference.rotary_, q, k)(q, k, positions, cos_sin)


def _check(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    check_floats(q=q, k=k)
    if q.ndim != 3 or k.ndim != 3 or q.shape[::2] != k.shape[::2]:
        raise ValueError(f"q must be [T, Hq, D] and k [T, Hk, D], got {tuple(q.shape)} and {tuple(k.shape)}")
    if positions.shape != q.shape[:1]:
        raise ValueError(f"positions must be [{q.shape[0]}], got {tuple(positions.shape)}")
    if cos_sin.ndim != 2 or cos_sin.shape[1] % 2 or cos_sin.shape[1] > q.shape[2] or cos_sin.dtype != torch.float32:
        raise ValueError(
            f"cos_sin must be [P, rot_dim] float32, rot_dim even and at most {q.shape[2]}, got {tuple(cos_sin.shape)}"
        )
    if q.stride(2) != 1 or k.stride(2) != 1:
        raise ValueError("the last dimension of q and k must be contiguous")
