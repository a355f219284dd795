"""A checksum at memory speed, for gigabytes of packed weights. It detects changed, missing and moved words."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from octavo_kernels.checksum.reference import checksum as reference
from octavo_kernels.linear.formats import Array
from octavo_kernels.native import library

_PROBE_BYTES = 1 << 28
_PROBE_SECONDS = 0.1


def checksum(data: Array) -> int:
    """The sum of all 64-bit words, each xored with its index times an odd constant, modulo 2^64.

    Args:
        data: [64 n] uint8, contiguous.
    """
    return _native([data]) % 2**64 if library.library() is not None else reference(data)


def read_bandwidth(arrays: Sequence[Array]) -> tuple[float, float]:
    """Bytes per second that all threads together read from memory, over the first 256 MiB: slow passes and fast ones.

    Nine passes in ten are faster than the first figure, one in ten faster than the second. One figure would not do on
    a machine with neighbours: the best pass of 0.05 s was 41 or 102 GB/s from one start to the next on two cores of a
    shared EPYC server.

    Args:
        arrays: contiguous arrays to read; if they fit into the caches, the caches' bandwidth is measured.

    Raises:
        BuildError: there is no native library.
    """
    ends = np.cumsum([array.nbytes for array in arrays])
    probed = arrays[: 1 + int(np.searchsorted(ends, _PROBE_BYTES))]
    size, passes = sum(array.nbytes for array in probed), list[float]()
    begin = now = time.perf_counter()
    while now - begin < _PROBE_SECONDS:
        _native(probed)
        last, now = now, time.perf_counter()
        passes.append(now - last)
    fast, slow = np.quantile(passes, (0.1, 0.9))
    return float(size / slow), float(size / fast)


def _native(arrays: Sequence[Array]) -> int:
    addresses = np.array([array.ctypes.data for array in arrays], np.int64)
    sizes = np.array([array.nbytes for array in arrays], np.int64)
    return library.call("checksum", addresses, sizes, len(arrays))
