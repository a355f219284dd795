"""Counter-based random numbers: a pure function of (seed, position), never of call order.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), vectorised over rows. The same
seed gives the same token at the same place of a sequence, whatever else is in the batch, and a stream that moves to
another shard goes on exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85  # key increments per round
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: UInt64, key: UInt64) -> UInt64:
    """Philox4x32-10.

    Args:
        counter: [4, R] 32-bit words in 64-bit lanes.
        key: [2, R] likewise.

    Returns:
        [4, R] random 32-bit words in 64-bit lanes.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return np.stack([c0, c1, c2, c3])


def uniform(seed: UInt64, position: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One uniform number in [0, 1) per row, with 53 random bits.

    Args:
        seed: [R].
        position: [R] index in the sequence of the token that is drawn.
    """
    place = position.astype(np.uint64)
    zero = np.zeros_like(place)
    words = philox(np.stack([place & _LOW, place >> _32, zero, zero]), np.stack([seed & _LOW, seed >> _32]))
    bits: npt.NDArray[np.float64] = ((words[0] << _32 | words[1]) >> np.uint64(11)).astype(np.float64)
    return bits * 2.0**-53
