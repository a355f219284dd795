"""Candidates are the largest of a row's treated log probabilities, which are not normalised again."""

import numpy as np
import torch

from octavo.execution.beam_candidates import candidates
from octavo.step import SamplingRows

VOCAB = 70


def rows_of(count: int, **extras) -> SamplingRows:
    """Greedy rows."""
    zeros = np.zeros(count, np.int32)
    ones = np.ones(count, np.float32)
    return SamplingRows(zeros, ones * 0, zeros, ones, ones * 0, zeros.astype(np.uint64), zeros + 1, zeros - 1, **extras)


def test_they_are_those_of_a_plain_log_softmax():
    logits = np.random.default_rng(0).normal(size=(2, VOCAB)).astype(np.float32) * 3
    found = candidates(logits, np.array([1, 0, 1]), np.zeros(3, np.int64), rows_of(3, beams={0: 4, 2: VOCAB + 5}))
    expected = torch.from_numpy(logits[1]).log_softmax(-1).sort(descending=True)
    assert found.keys() == {0, 2}
    for each, count in ((found[0], 4), (found[2], VOCAB)):
        assert each.token_ids.tolist() == expected.indices[:count].tolist()
        assert np.abs(each.scores - expected.values[:count].numpy()).max() < 1e-5
        assert each.ranks.tolist() == [*range(1, count + 1)]


def test_rows_that_are_not_finite_have_none():
    rows = rows_of(2, beams={0: 3, 1: 3})
    assert candidates(np.zeros((2, VOCAB), np.float32), np.array([0, 1]), np.array([0, -1]), rows).keys() == {0}


def test_masks_leave_what_they_allow():
    logits = np.random.default_rng(1).normal(size=(3, VOCAB)).astype(np.float32)
    masks = np.full((1, 3), 0b101011, np.uint32)
    rows = rows_of(3, beams={0: 6, 2: 5}, masks=masks, masked=np.array([2], np.int32))
    found = candidates(logits, np.arange(3), np.zeros(3, np.int64), rows)
    assert {token % 32 for token in found[2].token_ids.tolist()} <= {0, 1, 3, 5}
    own = torch.from_numpy(logits[2]).log_softmax(-1)
    assert np.abs(found[2].logprobs - own[found[2].token_ids].numpy()).max() < 1e-5
    assert found[2].ranks.tolist() == [1 + int((own > own[token]).sum()) for token in found[2].token_ids.tolist()]
