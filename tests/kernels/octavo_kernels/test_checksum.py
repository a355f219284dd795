"""The checksum: the same natively and in numpy, on any number of threads, and sensitive to place."""

from __future__ import annotations

import numpy as np
import pytest

from octavo_kernels.checksum import checksum, read_bandwidth, reference
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, supported_levels, use


def data(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize("size", [0, 64, 192, 64 * 1001, 9 << 20])
def test_native_equals_numpy(level, size):
    try:
        native = Library(level)
    except NoCompiler:
        pytest.skip("no C++ compiler")
    expected = reference(data(size))
    for threads in (1, 2, 3):
        native.set_threads(threads)
        with use(native):
            assert checksum(data(size)) == expected


def test_bandwidth_is_bytes_over_seconds():
    """Of 64 MiB in pieces: less than 10 TB/s, and more than a disk; slow passes before fast ones."""
    try:
        native = Library(supported_levels()[-1])
    except NoCompiler:
        pytest.skip("no C++ compiler")
    with use(native):
        slow, fast = read_bandwidth([data(1 << 25), data(1 << 25)])
    assert 1e8 < slow <= fast < 1e13


def test_it_notices_flips_and_moves():
    whole = data(1 << 16)
    flipped, moved = whole.copy(), whole.copy()
    flipped[12345] ^= 16
    moved[:64], moved[64:128] = whole[64:128], whole[:64]
    assert len({reference(each) for each in (whole, flipped, moved, np.zeros_like(whole), whole[:-64])}) == 5
