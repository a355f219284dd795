"""Which learned bias two tokens' attention score gets, by their distance (T5's buckets, Raffel et al. 2019)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from octavo.models.encoder_spec import EncoderSpec


def relative_buckets(spec: EncoderSpec, distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row of `relative_bias` for each distance, which is the key's position minus the query's.

    One half of the buckets is for keys before the query and one for those after it. In a half, each short distance has
    a bucket of its own, and longer ones share buckets that widen with their logarithm, in transformers' arithmetic.
    """
    half, exact = spec.buckets // 2, spec.buckets // 4
    steps, apart = np.float32(half - exact), np.abs(distances)
    ratio = np.log(np.maximum(apart, exact).astype(np.float32) / np.float32(exact))
    wide = exact + (ratio / np.float32(math.log(spec.max_distance / exact)) * steps).astype(np.int64)
    return np.where(distances > 0, half, 0) + np.where(apart < exact, apart, np.minimum(wide, half - 1))
