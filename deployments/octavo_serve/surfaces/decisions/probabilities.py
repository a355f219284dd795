"""From the log probabilities of labels to an answer's numbers.

All of it is a function of one question's log probabilities in the order of its options: equal inputs give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(logprobs: Sequence[float]) -> list[float] | None:
    """Probabilities of the options, given that one of their labels is said; None where that has no meaning.

    Args:
        logprobs: natural logarithms, of which some may be -inf.
    """
    most = max(logprobs)
    if not math.isfinite(most) or any(math.isnan(value) for value in logprobs):
        return None
    weights = [math.exp(value - most) for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def best(probabilities: Sequence[float]) -> int:
    """The most likely option; of several, the first."""
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def choice_confidence(probabilities: Sequence[float]) -> float:
    """How far the most likely option is above 1/k: 0 where all k are equally likely, 1 where one is certain."""
    uniform = 1 / len(probabilities)
    return 1.0 if uniform == 1 else _within((max(probabilities) - uniform) / (1 - uniform))


def score_confidence(probabilities: Sequence[float]) -> float:
    """1 less the mean distance from the most likely level, as a part of that of k equally likely levels from their
    middle: 0 where levels are as spread as those, 1 where one is certain."""
    count, mode = len(probabilities), best(probabilities)
    if count == 1:
        return 1.0
    distance = math.fsum(p * abs(level - mode) for level, p in enumerate(probabilities))
    middle = (count - 1) / 2
    uniform = math.fsum(abs(level - middle) for level in range(count)) / count
    return _within(1 - distance / uniform)


def expected_level(probabilities: Sequence[float]) -> float:
    """The mean level, where the lowest is 0."""
    return math.fsum(level * p for level, p in enumerate(probabilities))


def _within(value: float) -> float:
    return min(1.0, max(0.0, value))
