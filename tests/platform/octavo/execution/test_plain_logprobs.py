"""Log probabilities in numpy beside those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.execution.plain_logprobs import logprobs_without_alternatives
from octavo.execution.sampler import sampled_logprobs
from octavo.step import SamplingRows
from octavo_kernels.native.library import library


@pytest.mark.parametrize("vocab", [9, 40_001])
def test_the_same_bits_as_in_torch(vocab: int) -> None:
    if library() is None:
        pytest.skip("no C++ compiler")
    logits = torch.randn(3, vocab) * 4
    logits_row, tokens = np.array([2, 2, 0, 1, 1]), np.array([1, 8, 5, -1, 0])
    rows = SamplingRows(*[np.zeros(5)] * 8)
    rows.num_logprobs = np.array([0, 0, -1, 0, 0], np.int32)
    rows.named = {0: np.array([3, 1, 3]), 3: np.array([4])}
    found = logprobs_without_alternatives(logits.numpy(), logits_row, tokens, rows)
    assert found == sampled_logprobs(logits, logits_row, tokens, rows)
    assert found[0].token_ids == [1, 3, 1, 3]
    assert found[0].logprobs[0] == found[0].logprobs[2]
    assert sorted(found) == [0, 1, 4]
