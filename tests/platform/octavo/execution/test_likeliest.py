"""The likeliest tokens beside a whole sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from octavo.execution.likeliest import likeliest


@given(st.integers(1, 3000), st.integers(0, 40), st.sampled_from([2, 30, 10**6]), st.integers(0, 2**32 - 1))
def test_as_a_sort_of_all_has_them(size: int, count: int, different: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.integers(0, different, size).astype(np.float32)
    values[draw.random(size) < 0.1] = -np.inf
    assert likeliest(values, count).tolist() == np.lexsort((np.arange(size), -values))[:count].tolist()


def test_where_all_are_equal_and_where_one_is_no_number() -> None:
    assert likeliest(np.zeros(5000, np.float32), 3).tolist() == [0, 1, 2]
    values = np.arange(5000, dtype=np.float32)
    values[7] = np.nan
    assert set(likeliest(values, 3).tolist()) <= {4999, 4998, 4997, 7}
