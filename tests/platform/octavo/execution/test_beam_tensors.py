"""Candidates on a device are those that numpy finds."""

import numpy as np
import pytest
import torch

from octavo.execution.beam_candidates import candidates
from octavo.execution.beam_tensors import begin_candidates
from octavo.step import Penalties, SamplingRows

VOCAB = 70
EXTRAS = {
    "none": {},
    "penalties": {"penalties": {0: Penalties(0.5, 0.1, 1.3, np.array([3, 9, 11]), np.array([1, 2, 0], np.float32))}},
    "bias": {"logit_bias": {2: (np.array([5]), np.full(1, -2, np.float32))}},
    "bans": {"banned": {0: np.array([7, 8])}},
    "masks": {"masks": np.full((1, 3), 0b101011, np.uint32), "masked": np.array([2], np.int32)},
}


@pytest.mark.parametrize("extras", EXTRAS)
def test_both_find_the_same(extras):
    zeros, ones = np.zeros(3, np.int32), np.ones(3, np.float32)
    rows = SamplingRows(zeros, ones * 0, zeros, ones, ones * 0, zeros.astype(np.uint64), zeros + 1, zeros - 1,
                        beams={0: 6, 2: 20}, **EXTRAS[extras])  # fmt: skip
    logits, places = np.random.default_rng(0).normal(size=(2, VOCAB)).astype(np.float32) * 3, np.array([1, 0, 0])
    expected = candidates(logits.copy(), places, np.zeros(3, np.int64), rows)
    found = begin_candidates(torch.from_numpy(logits), places, rows)()
    assert found.keys() == expected.keys() == {0, 2}
    for row, each in found.items():
        assert each.token_ids.tolist() == expected[row].token_ids.tolist()
        assert each.ranks.tolist() == expected[row].ranks.tolist()
        assert np.abs(each.scores - expected[row].scores).max() < 1e-5
        assert np.abs(each.logprobs - expected[row].logprobs).max() < 1e-5
