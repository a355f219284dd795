"""Arrays to a device and results back, without waiting for what the device is doing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.ArrayLike, device: torch.device | str) -> Tensor:
    """A tensor of an array's values; on a GPU it is copied from pinned memory, behind the work that is queued there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(*tensors: Tensor) -> Callable[[], list[npt.NDArray[np.generic]]]:
    """Begin to copy tensors to the host; what is returned waits for them."""
    if not tensors or not tensors[0].is_cuda:
        return lambda: [tensor.numpy() for tensor in tensors]
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> list[npt.NDArray[np.generic]]:
        done.synchronize()
        return [copy.numpy() for copy in copies]

    return wait
