"""Which back end a tensor gets, and the check that all ops share."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import NamedTuple

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


class GpuTraits(NamedTuple):
    """What a launcher asks of the GPU it launches on."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that one program may take


@functools.cache
def gpu_traits(device: torch.device) -> GpuTraits:
    """Of a CUDA device; a small GPU's for the CPU, where Triton's interpreter runs."""
    if device.type != "cuda":
        return GpuTraits((8, 9), 4, 99 * 1024)
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)  # AMD's has no such thing
    return GpuTraits((found.major, found.minor), found.multi_processor_count, shared)


def check_floats(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all tensors have one device and one supported float type."""
    name, first = next(iter(tensors.items()))
    if first.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, bfloat16 or float16, got {first.dtype}")
    for other, x in tensors.items():
        if x.dtype != first.dtype or x.device != first.device:
            raise ValueError(f"{other} is {x.dtype} on {x.device}, but {name} is {first.dtype} on {first.device}")
