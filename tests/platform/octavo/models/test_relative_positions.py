"""Buckets of relative positions beside transformers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from octavo.models.encoder_spec import EncoderSpec
from octavo.models.relative_positions import relative_buckets


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (16, 64), (128, 1000)])
def test_buckets_are_those_of_transformers(buckets: int, far: int) -> None:
    distances = np.arange(-2000, 2001)
    found = relative_buckets(EncoderSpec(buckets=buckets, max_distance=far), distances)
    expected = MPNetEncoder.relative_position_bucket(torch.from_numpy(distances), buckets, far)
    assert found.tolist() == expected.tolist()
    assert set(found) == set(range(buckets)) - {buckets // 2}  # no key is after the query at distance 0
