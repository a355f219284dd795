"""Which device a model runs on, found out without torch where that is possible: it takes 1.2 s and 150 MB."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from octavo.errors import ConfigError

_GPU_FILES = "/dev/nvidiactl", "/dev/kfd", "/dev/dxg"
"""On Linux a GPU's driver shows one of these: NVIDIA's, AMD's, or that of Windows below it."""


def find_device(name: str) -> str:
    """The device of a setting: "cpu", or "cuda:N", which is made current in this thread.

    With the number of the GPU: Triton and CUDA graphs use the one that is current in the thread that runs a step.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: there is no such device.
    """
    if name == "cpu" or (name == "auto" and _has_no_gpu()):
        return "cpu"
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r} but torch sees no CUDA device; use 'cpu' or 'auto'")
    if name in ("auto", "cuda"):
        name = f"cuda:{torch.cuda.current_device()}"
    if name != "cpu":
        torch.cuda.set_device(name)
    return name


def limit_torch(threads: int) -> None:
    """Bound torch's threads, whether it is loaded already, later, or never."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    else:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _has_no_gpu() -> bool:
    """Whether that is certain without asking torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return hidden or (sys.platform == "linux" and not any(Path(file).exists() for file in _GPU_FILES))
