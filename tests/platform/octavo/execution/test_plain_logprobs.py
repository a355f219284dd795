"""Log probabilities in numpy beside those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.execution import plain_logprobs, sampler
from octavo.execution.plain_logprobs import prompt_logprobs, sampled_logprobs
from octavo.step import SamplingRows
from octavo_kernels.native.library import library


@pytest.fixture(autouse=True)
def _native() -> None:
    if library() is None:
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("vocab", [9, 40_001])
@pytest.mark.parametrize("counts", [[0, 0, -1, 0, 0], [5, 0, -1, 20, 1]], ids=["alone", "alternatives"])
def test_the_same_bits_as_in_torch(vocab: int, counts: list[int]) -> None:
    logits = torch.randn(3, vocab) * 4
    logits_row, tokens = np.array([2, 2, 0, 1, 1]), np.array([1, 8, 5, -1, 0])
    rows = SamplingRows(*[np.zeros(5)] * 8)
    rows.num_logprobs = np.array(counts, np.int32)
    rows.named = {0: np.array([3, 1, 3]), 3: np.array([4])}
    found = sampled_logprobs(logits.numpy(), logits_row, tokens, rows)
    assert found.keys() == {0, 1, 4}
    for row, entry in found.items():
        (others,) = sampler.logprob_rows(logits[logits_row[row]][None], [int(tokens[row])], [counts[row]])
        names = rows.named.get(row, np.zeros(0, np.int64)).tolist()
        named = [sampler.logprob_rows(logits[logits_row[row]][None], [name], [0])[0].logprobs[0] for name in names]
        assert entry.token_ids == [*others.token_ids, *names]
        assert entry.logprobs == [*others.logprobs, *named]
        assert (entry.rank, entry.named) == (others.rank, len(names))


def test_a_prompts_rows_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_logprobs, "_LOGIT_ROWS", 2)
    logits, wanted = torch.randn(9, 500), [(0, 3, 0), (4, 499, 2), (8, 0, 20)]
    asked: list[list[int]] = []

    def some(places: list[int]) -> torch.Tensor:
        asked.append(places)
        return logits[places]

    found = prompt_logprobs(wanted, lambda places: some(places).numpy(), plain_logprobs.logprob_rows)
    assert asked == [[0, 4], [8]]
    assert found == prompt_logprobs(wanted, some, sampler.logprob_rows)
    assert prompt_logprobs(wanted, lambda places: None, sampler.logprob_rows) == []  # another rank has them
