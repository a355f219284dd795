"""How long a step may take before its engine counts as dead.

A step of 1,024 tokens takes an 8B model 65 s on two cores, so no fixed time will do. A step is given ten times what it
is expected to take: what the cost model predicts or, where that has not seen its like (a prompt after nothing but
decoding), what its tokens would take at the mean of all tokens so far. A token of a prompt takes less than one that is
decoded alone, so the mean is no promise but errs on the patient side. Before any step has been seen, a second per
token is given: an 8B model needs a sixteenth of that on two cores.
"""

from __future__ import annotations

from octavo.cost_model import CostModel

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

    def seconds(self, amounts: tuple[int, int, int, int]) -> float:
        """What a step may take.

        Args:
            amounts: its tokens, sequences, attended and context, as `CostModel.predict` takes them.
        """
        tokens = amounts[0]
        if not self._tokens:
            return LEAST + _UNKNOWN * tokens
        expected = max(self._model.predict(*amounts), tokens * self._seconds / self._tokens)
        return max(LEAST, _FACTOR * expected)
