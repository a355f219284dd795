"""How long a step may take before its engine counts as dead.

No fixed time will do: a step of 1,024 tokens takes an 8B model 65 s on two cores. A step is given ten times its
expected duration. That is the larger of two predictions: the cost model's, and the step's tokens times the mean seconds
per token so far. The second is for a step unlike all before it, such as a prompt after nothing but decoding; a token of
a prompt takes less time than one that is decoded alone, so the mean errs on the patient side. Before any step was seen,
a second per token is given, sixteen times what an 8B model needs on two cores.
"""

from __future__ import annotations

from octavo.cost_model import CostModel, StepWork

LEAST = 60.0
"""Seconds that any step may take: a machine can stand still for some, whatever the step."""

_FACTOR = 10
_UNKNOWN = 1.0  # seconds per token


class Patience:
    """Learns from the steps that ran; `model` is what the scheduler learns from them."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._tokens = 0
        self._seconds = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step has ended."""
        self._tokens += tokens
        self._seconds += seconds

    def seconds(self, work: StepWork) -> float:
        """What a step may take."""
        if not self._tokens:
            return LEAST + _UNKNOWN * work.tokens
        expected = max(self._model.predict(work), work.tokens * self._seconds / self._tokens)
        return max(LEAST, _FACTOR * expected)
