"""Probabilities, confidence and score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_serve.surfaces.decisions.probabilities import (
    best,
    choice_confidence,
    expected_level,
    score_confidence,
    softmax,
)

LOGPROBS = st.lists(st.floats(-1000, 0), min_size=1, max_size=30)


@given(LOGPROBS)
@settings(max_examples=40)
def test_probabilities_are_a_distribution_in_the_order_of_the_log_probabilities(logprobs: list[float]) -> None:
    found = softmax(logprobs)
    assert found is not None
    assert math.fsum(found) == pytest.approx(1)
    assert logprobs[best(found)] == pytest.approx(max(logprobs))
    for confidence in (choice_confidence(found), score_confidence(found)):
        assert 0 <= confidence <= 1
    assert 0 <= expected_level(found) <= len(found) - 1 + 1e-9


def test_what_both_labels_leave_out_changes_nothing() -> None:
    assert softmax([math.log(0.06), math.log(0.02)]) == pytest.approx([0.75, 0.25])
    assert softmax([-5000.0, -5000.0]) == [0.5, 0.5]


def test_no_label_is_possible() -> None:
    assert softmax([-math.inf, -1.0]) == [0.0, 1.0]
    assert softmax([-math.inf, -math.inf]) is None
    assert softmax([math.nan, -1.0]) is None


@pytest.mark.parametrize(
    ("probabilities", "choice", "score", "level"),
    [
        ([1.0], 1.0, 1.0, 0.0),
        ([0.5, 0.5], 0.0, 0.0, 0.5),
        ([0.25] * 4, 0.0, 0.0, 1.5),
        ([0.0, 0.0, 1.0], 1.0, 1.0, 2.0),
        ([0.1, 0.8, 0.1], 0.7, 0.7, 1.0),  # distance 0.2 of 2/3
        ([0.5, 0.0, 0.5], 0.25, 0.0, 1.0),  # further apart than even levels
    ],
)
def test_confidence(probabilities: list[float], choice: float, score: float, level: float) -> None:
    assert choice_confidence(probabilities) == pytest.approx(choice)
    assert score_confidence(probabilities) == pytest.approx(score)
    assert expected_level(probabilities) == pytest.approx(level)
