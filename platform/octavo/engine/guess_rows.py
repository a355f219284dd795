"""What a guessed token makes a step longer: measured of steps with guesses, and before that the cost model's row.

The cost model knows one slope for all rows. Kernels have stairs: beside four rows of a step a fifth may be a pass of
its own, beside one row a second may be nearly free. And where all steps have equally many rows, the slope is not known
at all. So it is measured for each number of sequences: what steps with guesses took beyond what is predicted without.
"""

from __future__ import annotations

from octavo.cost_model import Cost, CostModel, StepWork

_FORGETTING = 0.98
"""Of what was measured, for each step with guesses."""

_PRIOR = 4.0
"""Rows that the cost model's counts as."""


class GuessRows:
    """Seconds of a guess.

    Args:
        cost_model: of the engine's steps.
    """

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self._measured: dict[int, tuple[float, float]] = {}  # by sequences of a step: seconds, and guesses

    def took(self, work: StepWork, guesses: int, seconds: float) -> None:
        """Learn from a step with guesses, which `work` counts.

        What is more than the step again is a stall, and counts as that much; what is less evens out what was more.
        """
        count = work.sequences - guesses
        if work.has_prompts or count <= 0:
            return
        context = work.context / count
        without = self._cost_model.predict(
            StepWork(
                work.tokens - guesses, count, round(work.attended - guesses * context), work.context - guesses, False
            )
        )
        spent, rows = self._measured.get(count, (0.0, 0.0))
        more = min(max(-without, seconds - without), without)
        self._measured[count] = spent * _FORGETTING + more, rows * _FORGETTING + guesses

    def seconds(self, cost: Cost, sequences: int, context: float) -> float:
        """What one more row takes.

        Args:
            cost: of the cost model now.
            sequences: of the step.
            context: tokens that the row attends to.
        """
        row = cost.token + cost.sequence + cost.attended * context
        spent, rows = self._measured.get(sequences, (0.0, 0.0))
        return max(0.0, (spent + _PRIOR * row) / (rows + _PRIOR))
