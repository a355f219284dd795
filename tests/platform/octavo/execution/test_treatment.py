"""Masks, bias, bans and penalties by numpy, by torch and by their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.token_counts import TokenCounts
from octavo.execution import tensor_treatment
from octavo.execution.treatment import apply_masks, apply_treatment
from octavo.step import Penalties, SamplingRows

VOCAB = 40
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=60)
FACTORS = st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([1.0, 1.3, 0.7, 100.0, 1e-38, 2.0**-126]))
ALLOWED = st.none() | st.sets(st.integers(0, VOCAB - 1))
ROW = st.tuples(
    st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=9),
    st.sets(st.integers(0, VOCAB - 1), max_size=9),
    st.none() | st.tuples(FACTORS, TOKENS, TOKENS),
)


def sparse(wanted) -> SamplingRows:
    rows = SamplingRows(*[np.zeros(len(wanted))] * 8)
    for row, (bias, banned, penalties) in enumerate(wanted):
        if bias:
            rows.logit_bias[row] = np.array([*bias]), np.array([*bias.values()], np.float32)
        if banned:
            rows.banned[row] = np.array(sorted(banned))
        if penalties:
            factors, prompt, output = penalties
            counts = TokenCounts(prompt)
            for token in output:
                counts.add(token)
            rows.penalties[row] = Penalties(*factors, *counts.now())
    return rows


def add_masks(rows, allowed, words=-(-VOCAB // 32)) -> None:
    """`allowed`: by row the tokens that may be drawn, or None for all."""
    masked = [row for row, tokens in enumerate(allowed) if tokens is not None]
    rows.masks, rows.masked = np.zeros((len(masked), words), np.uint32), np.array(masked, np.int32)
    for mask, row in zip(rows.masks, masked, strict=True):
        for token in allowed[row]:
            mask[token // 32] |= np.uint32(1 << token % 32)


def by_definition(logits, wanted, allowed=()):
    """One token after the other, in float32 like both. Masks come last here, and first in both."""
    out = logits.copy()
    for row, (bias, banned, penalties) in zip(out, wanted, strict=True):
        for token, added in bias.items():
            row[token] += np.float32(added)
        row[list(banned)] = -np.inf
        if penalties is None:
            continue
        (presence, frequency, repetition), prompt, output = penalties
        p, f, r = np.float32(presence), np.float32(frequency), np.float32(repetition)
        for token in {*prompt, *output}:
            x, count = row[token], np.float32(output.count(token))
            with np.errstate(all="ignore"):
                x = x / r if x > 0 else x * r
            row[token] = min(x - (f * count + p * np.float32(count > 0)), np.finfo(np.float32).max)
    for row, tokens in enumerate(allowed):
        if tokens is not None:
            out[row, [token for token in range(VOCAB) if token not in tokens]] = -np.inf
    return out


@given(
    wanted=st.lists(ROW, min_size=1, max_size=4),
    allowed=st.none() | st.lists(ALLOWED, min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_do_what_is_defined_and_the_native_one_puts_it_back(wanted, allowed, seed):
    logits = np.random.default_rng(seed).normal(0, 4, (len(wanted), VOCAB)).astype(np.float32)
    rows = sparse(wanted)
    allowed = [] if allowed is None else allowed[: len(wanted)]
    if allowed:
        add_masks(rows, allowed)
    want = by_definition(logits, wanted, allowed)
    theirs = logits.copy()
    tensor_treatment.apply_treatment(torch.from_numpy(theirs), rows)
    late = logits.copy()
    apply_masks(logits, rows)
    own = logits.copy()
    undo = apply_treatment(logits, np.arange(len(wanted)), rows)
    assert logits.tobytes() == theirs.tobytes() == want.tobytes()
    assert not np.isnan(logits).any()
    undo()
    assert logits.tobytes() == own.tobytes()
    apply_treatment(late, np.arange(len(wanted)), rows)
    apply_masks(late, rows)  # as whoever reads masks while drawing
    assert late.tobytes() == want.tobytes()


@given(wanted=st.lists(ROW, min_size=1, max_size=4), last=st.lists(st.integers(-1, VOCAB - 1), min_size=4, max_size=4))
def test_a_token_that_only_the_device_knows_counts_like_any_other(wanted, last):
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (len(wanted), VOCAB)).astype(np.float32))
    listed = [
        (bias, banned, penalties and (*penalties[:2], penalties[2] + ([token] if token >= 0 else [])))
        for (bias, banned, penalties), token in zip(wanted, last, strict=False)
    ]
    told = logits.clone()
    tensor_treatment.apply_treatment(logits, sparse(listed))
    tensor_treatment.apply_treatment(told, sparse(wanted), torch.tensor(last[: len(wanted)]))
    assert told.numpy().tobytes() == logits.numpy().tobytes()


def test_rows_that_share_logits_are_treated_once():
    logits = np.zeros((2, VOCAB), np.float32)
    row = ({3: 1.0}, set(), ((0.5, 0.0, 1.0), [], [3]))
    apply_treatment(logits, np.array([1, 1, 0]), sparse([row, row, ({}, set(), None)]))
    assert logits[1, 3] == pytest.approx(0.5)
    assert not logits[0].any()


@pytest.mark.parametrize("words", [1, 3])
def test_a_mask_may_be_shorter_or_longer_than_the_vocabulary(words):
    logits = np.zeros((1, VOCAB), np.float32)
    rows = sparse([({}, set(), None)])
    rows.masks, rows.masked = np.full((1, words), 2**32 - 1, np.uint32), np.zeros(1, np.int32)
    theirs = torch.zeros(1, VOCAB)
    tensor_treatment.apply_treatment(theirs, rows)
    apply_masks(logits, rows)
    assert logits.tobytes() == theirs.numpy().tobytes()
    assert np.isfinite(logits).sum() == min(VOCAB, 32 * words)
