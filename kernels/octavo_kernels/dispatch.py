"""Chooses an op's back end; also holds the check that all ops share."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from octavo_kernels.native.library import use_cpu

Op = TypeVar("Op", bound=Callable[..., Any])

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        warnings.warn("Triton is not installed: the GPU runs the plain PyTorch kernels, slowly", stacklevel=3)
    return found


def backend(reference: Op, *tensors: torch.Tensor, gpu: bool = True, cpu: bool = True) -> Op:
    """The function that runs an op on these tensors: the one of the same name in `gpu.py` or `cpu.py`, or the
    reference.

    All of them have the reference's signature.

    Args:
        reference: the function in the op's `reference.py`.
        tensors: decide by their device and type; all are on one device.
        gpu, cpu: whether there is a Triton kernel, or native code, for this call.
    """
    if gpu and use_gpu(tensors[0]):
        return other(reference, "gpu")
    if cpu and use_cpu(*tensors):
        return other(reference, "cpu")
    return reference


def other(reference: Op, file: str) -> Op:
    """The function of the same name in the op's file "gpu" or "cpu"."""
    name = reference.__module__.removesuffix("reference") + file
    module = sys.modules.get(name) or importlib.import_module(name)
    found: Op = getattr(module, reference.__name__)
    return found


def use_gpu(x: torch.Tensor) -> bool:
    """Whether `x` goes to the Triton kernel: it lies on a CUDA device and Triton is installed."""
    return x.is_cuda and _has_triton()


class GpuTraits(NamedTuple):
    """Properties of a GPU that launchers need."""

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that one program may use


@functools.cache
def gpu_traits(device: torch.device) -> GpuTraits:
    """The traits of a CUDA device; for the CPU, where Triton's interpreter runs, those of a small GPU."""
    if device.type != "cuda":
        return GpuTraits((8, 9), 4, 99 * 1024)
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)  # AMD's properties lack it
    return GpuTraits((found.major, found.minor), found.multi_processor_count, shared)


def check_floats(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all tensors are on one device and have one supported float type."""
    name, first = next(iter(tensors.items()))
    if first.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, bfloat16 or float16, got {first.dtype}")
    for other, x in tensors.items():
        if x.dtype != first.dtype or x.device != first.device:
            raise ValueError(f"{other} is {x.dtype} on {x.device}, but {name} is {first.dtype} on {first.device}")
