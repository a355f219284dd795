"""The checksum in numpy."""

from __future__ import annotations

import numpy as np

from octavo_kernels.linear.formats import Array

MIX = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, odd: neighbouring multiples differ in half of their bits."""


def checksum(data: Array) -> int:
    """As `octavo_kernels.checksum.checksum`, computed a few megabytes at a time."""
    words, step, total = data.view(np.uint64), 1 << 20, 0
    for start in range(0, words.size, step):
        part = words[start : start + step]
        index = np.arange(start, start + part.size, dtype=np.uint64)
        total += int(np.add.reduce(part ^ index * MIX))
    return total % 2**64
