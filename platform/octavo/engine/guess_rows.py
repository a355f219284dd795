"""What guessed tokens make a step longer: measured for each number of them, and before that the cost model's rows.

The cost model knows one slope for all rows. Kernels have stairs: of SmolLM2 on a CPU one guess beside four sequences
takes 0.04 of their step, two 0.22, three 0.54. So shares of the step without guesses are measured, by the numbers of
its sequences and of its guesses. What that step takes is the cost model's, corrected by the last ones without guesses:
shares are compared with each other and must not carry what a slope through all stairs gets wrong.
"""

from __future__ import annotations

from octavo.cost_model import CostModel, StepWork

_FORGETTING = 0.98
"""Of what was measured, for each step with as many guesses."""

_AGEING = 0.99
"""Likewise for each step, whatever it has. A machine that is slow for a while makes guesses look dear, for steps are
longer than was known; what looks dear is not tried, and only this lets it be measured again. After 300 steps that took
ten times as long, four simulated streams had 1.7 tokens a step for ever without it, and 2.9 of 3.4 after 500 with it.
"""

_PRIOR = 2.0
"""Steps that what is expected counts as, before any were measured."""

_LOOKED_AT = 4
"""Every how many-th step without guesses is looked at: one takes 14 us beside a model's steps."""

_NEWEST = 1 / 8
"""How much the newest of those counts."""


class GuessRows:
    """Seconds of guesses beside the step that was priced last.

    Args:
        cost_model: of the engine's steps.
    """

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self._plain: dict[int, float] = {}  # by sequences: what steps without guesses took, over what was predicted
        # by sequences and guesses: shares, steps, and which of all steps was the last one of these
        self._measured: dict[tuple[int, int], tuple[float, float, int]] = {}
        self._steps = self._plain_steps = 0
        self._sequences, self._row, self._without = 0, 0.0, 0.0
        self._taken = [0.0]  # by guesses

    def took(self, work: StepWork, guesses: int, seconds: float) -> None:
        """Learn from a step, of whose rows so many were guesses.

        What is half more than was known, and a quarter of the step, is a stall, and counts as that much; what is less
        evens out what was more.
        """
        count = work.sequences - guesses
        self._steps += 1
        self._plain_steps += not guesses
        if work.has_prompts or count <= 0 or (not guesses and self._plain_steps % _LOOKED_AT):
            return
        share = seconds / max(1e-9, self.without(_without(work, guesses) if guesses else work))
        if guesses:
            self._learn(count, guesses, share - 1)
        else:
            self._plain[count] = self._plain.get(count, 1.0) * (1 + (min(share, 2.0) - 1) * _NEWEST)

    def _learn(self, count: int, guesses: int, share: float) -> None:
        shares, steps = self._known(count, guesses)
        known = shares / steps if steps else guesses / count  # as if a guess were as dear as a row without
        shares = shares * _FORGETTING + min(share, 1.5 * known + 0.25)
        self._measured[count, guesses] = shares, steps * _FORGETTING + 1, self._steps

    def _known(self, count: int, guesses: int) -> tuple[float, float]:
        """What was measured of so many guesses beside so many sequences: the sum of shares, and steps."""
        shares, steps, last = self._measured.get((count, guesses), (0.0, 0.0, 0))
        kept = _AGEING ** (self._steps - last)
        return shares * kept, steps * kept

    def without(self, work: StepWork) -> float:
        """Seconds of a step without guesses."""
        return self._cost_model.predict(work) * self._plain.get(work.sequences, 1.0)

    def price(self, work: StepWork) -> None:
        """Ask from now on about guesses beside this step, which has none."""
        cost, context = self._cost_model.coefficients, work.context / max(1, work.sequences)
        self._sequences, self._without = work.sequences, self.without(work)
        self._row = cost.token + cost.sequence + cost.attended * context
        self._taken = [0.0]

    def seconds(self, guesses: int) -> float:
        """What so many guesses take beyond the step that was priced."""
        taken = self._taken
        while len(taken) <= guesses:
            shares, steps = self._known(self._sequences, len(taken))
            expected = taken[-1] + self._row
            taken.append(max(0.0, (shares * self._without + _PRIOR * expected) / (steps + _PRIOR)))
        return taken[guesses]


def _without(work: StepWork, guesses: int) -> StepWork:
    """The step that it would have been without guesses."""
    count = work.sequences - guesses
    attended = round(work.attended - guesses * work.context / count)
    return StepWork(work.tokens - guesses, count, attended, work.context - guesses, False)
