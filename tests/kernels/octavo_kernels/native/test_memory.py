"""Memory that is not touched until it is written."""

import numpy as np

from octavo_kernels.native.memory import untouched


def test_it_is_zero_writable_and_as_large_as_asked():
    memory = untouched(2**33)  # more than the test may touch
    assert (memory.dtype, memory.size) == (np.uint8, 2**33)
    memory[-1] = 7
    assert (memory[0], memory[-1]) == (0, 7)
    assert memory.ctypes.data % 4096 == 0
    assert untouched(0).size == 0
