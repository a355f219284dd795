"""Which back end a tensor gets, and the check that all ops share."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        warnings.warn("Triton is not installed: the GPU runs the plain PyTorch kernels, slowly", stacklevel=3)
    return found


def use_gpu(x: torch.Tensor) -> bool:
    """Whether `x` goes to the Triton kernel: it lies on a CUDA device and Triton is installed."""
    return x.is_cuda and _has_triton()


def check_floats(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all tensors have one device and one supported float type."""
    name, first = next(iter(tensors.items()))
    if first.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, bfloat16 or float16, got {first.dtype}")
    for other, x in tensors.items():
        if x.dtype != first.dtype or x.device != first.device:
            raise ValueError(f"{other} is {x.dtype} on {x.device}, but {name} is {first.dtype} on {first.device}")
