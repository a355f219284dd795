"""The likeliest of a vocabulary, in numpy."""

from __future__ import annotations

import numpy as np

from octavo.step import Float32, Int64

_STRETCH = 256
"""Values of which only the largest is compared first. Of 152,000 values the best 20 take 93 us so, 1.2 ms by
`np.argpartition` and 0.27 ms by `torch.topk` (one thread of a Zen 4)."""


def likeliest(values: Float32, count: int) -> Int64:
    """Ids of the largest values [V], the largest first, and of equal ones the smaller id; at most `count`.

    The best of each stretch are as many numbers as there are stretches, so none of the best `count` of all is smaller
    than the least of the best `count` of these. Where a value is no number there may be fewer.
    """
    count = min(count, len(values))
    whole = len(values) // _STRETCH * _STRETCH
    found = np.arange(len(values))
    if 0 < count <= whole // _STRETCH:
        best = values[:whole].reshape(-1, _STRETCH).max(axis=1)
        found = np.flatnonzero(values >= np.partition(best, len(best) - count)[len(best) - count])
    return found[np.lexsort((found, -values[found]))][:count].astype(np.int64, copy=False)
