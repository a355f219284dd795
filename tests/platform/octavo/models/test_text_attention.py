"""Attention inside texts; `test_encoder.py` has it beside transformers."""

from __future__ import annotations

import pytest
import torch

from octavo.models.text_attention import attend, attend_group, groups_of, padded


@pytest.mark.parametrize("window", [None, 6, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_texts_together_are_as_each_alone(window, biased):
    lengths = [70, 1, 16, 17, 300, 65]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    ranges = list(zip([0, *ends], ends, strict=False))
    qkv = torch.randn(ends[-1], 3, 4, 8)
    bias = torch.randn(4, 512, 512) if biased and window is None else None
    groups = groups_of(ranges, qkv.device)
    assert sorted(group.tokens.shape[1] for group in groups) == [16, 32, 128, 512]
    found = torch.full((ends[-1], 32), torch.nan)
    for group in groups:
        found[group.tokens[group.is_real]] = attend_group(qkv, group, window, bias, 0.3)
    for begin, end in ranges:
        alone = attend(qkv[begin:end], window, bias, 0.3)
        torch.testing.assert_close(found[begin:end], alone, atol=1e-5, rtol=0)


def test_a_window_reaches_as_far_after_a_token_as_before_it():
    x = torch.randn(700, 3, 4, 16)
    changed = x.clone()
    changed[300, 1:] += 1.0
    a, b = (attend(qkv, 6, None, 0.25) for qkv in (x, changed))
    assert (a != b).any(-1).nonzero().flatten().tolist() == list(range(295, 306))


def test_lengths_are_padded_to_powers_of_two():
    assert [padded(length) for length in (1, 16, 17, 64, 65, 8192)] == [16, 16, 32, 64, 128, 8192]
