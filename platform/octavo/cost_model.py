"""How long a step takes: predicted from what is in it, learned from steps that ran.

    seconds = step + token * tokens + sequence * sequences + attended * attended + context * context

`StepWork` has the amounts, `Cost` the coefficients. `tokens` is what the linear layers multiply, `attended` what
attention multiplies and `context` what attention reads. For a decoding sequence the last two are equal; for a prompt's
chunk `attended` is larger, because its tokens share one read of the context. On a GPU an attended position costs fifty
times more in decoding than in a prompt.

The fit is non-negative least squares of the relative error with exponential forgetting: it follows a machine whose
speed drifts, and a single stall has almost no influence. Steps with prompts and steps without are forgotten separately:
otherwise minutes of pure decoding would erase what was learned about prompts. Only the sums of the normal equations are
kept. After each step a few sweeps of coordinate descent move the coefficients from where they were, so a coefficient
that recent steps say nothing about keeps its value.

The scheduler bounds the prefill chunk with it (`tokens_within`) and the engine tells a slow step from a stuck one
(`octavo.engine.patience`). Routers, admission and autoscaler read the published coefficients in
`octavo.load.ShardState`. The planner fits a model of its own to a measured run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_Count = TypeVar("_Count", int, "npt.NDArray[np.int64]")


def attended(start: _Count, count: _Count) -> _Count:
    """Sum of the positions attended to by the `count` tokens that follow the first `start` tokens of a sequence.

    Each attends to itself and to all before it: (start + 1) + ... + (start + count). Arrays are taken elementwise.
    """
    return count * start + count * (count + 1) // 2


class StepWork(NamedTuple):
    """What is in a step.

    Attributes:
        tokens: computed in the step.
        sequences: number of sequences these tokens belong to, and of proposed tokens, which have rows of logits, too.
        attended: positions that the tokens attend to, summed over the tokens (see the function `attended`).
        context: positions in the cache after the step, summed over the sequences.
        has_prompts: whether any sequence computes prompt tokens.
    """

    tokens: int
    sequences: int
    attended: int
    context: int
    has_prompts: bool


class Cost(NamedTuple):
    """Seconds per step, and per token, sequence, attended position and context position in it."""

    step: float
    token: float
    sequence: float
    attended: float
    context: float

    def seconds(self, work: StepWork) -> float:
        """What a step takes."""
        return (
            self.step
            + self.token * work.tokens
            + self.sequence * work.sequences
            + self.attended * work.attended
            + self.context * work.context
        )


NO_COST = Cost(0.0, 0.0, 0.0, 0.0, 0.0)
"""Of a machine that has not been measured."""

# brings the amounts of ordinary steps near 1, which keeps the fit well conditioned
_SCALE = (1.0, 1e-2, 1e-1, 1e-5, 1e-4)

_SWEEPS = 3  # 60 us a step together with the sums
_FIRST_SWEEPS = 30  # while there is nothing to start from


class CostModel:
    """Online fit of a step's duration.

    Args:
        forgetting: factor by which each step reduces the weight of earlier ones of its kind; 0.98 remembers about 50
            steps with prompts and 50 without.
    """

    def __init__(self, forgetting: float = 0.98) -> None:
        self._forgetting = forgetting
        self._weights = [0.0] * len(_SCALE)
        self._decoding, self._prompts = _Sums(), _Sums()
        self.num_observed = 0

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen for predictions to mean anything."""
        return self.num_observed >= 8

    @property
    def coefficients(self) -> Cost:
        """The fitted coefficients; never negative."""
        return Cost(*(w * s for w, s in zip(self._weights, _SCALE, strict=True)))

    @property
    def published(self) -> Cost:
        """Coefficients for other processes: zeros until enough steps were observed for the fit to mean anything."""
        return self.coefficients if self.ready else NO_COST

    def predict(self, work: StepWork) -> float:
        """Seconds of a step; 0.0 before anything was observed."""
        return self.coefficients.seconds(work)

    def tokens_within(self, seconds: float, decoding: StepWork, start: int) -> int | None:
        """Most prefill tokens that can join a step without making it longer than `seconds`.

        Args:
            decoding: the step without them.
            start: tokens already in the cache of the sequence that they belong to.

        Returns:
            At least 0; None when no limit is known yet.
        """
        cost = self.coefficients
        slope = cost.token + cost.attended * start
        if not self.ready or slope <= 0:
            return None
        without = cost.seconds(decoding) + cost.sequence + cost.context * start
        return max(0, int((seconds - without) / slope))

    def observe(self, work: StepWork, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        amounts = 1, work.tokens, work.sequences, work.attended, work.context
        x = [scale * amount / max(seconds, 1e-9) for scale, amount in zip(_SCALE, amounts, strict=True)]
        (self._prompts if work.has_prompts else self._decoding).add(x, self._forgetting)
        self._fit(_SWEEPS if self.num_observed > 100 else _FIRST_SWEEPS)
        self.num_observed += 1

    def _fit(self, sweeps: int) -> None:
        """Move towards the solution of the normal equations, one coefficient after the other."""
        decoding, prompts, weights = self._decoding, self._prompts, self._weights
        products = [_plus(*rows) for rows in zip(decoding.products, prompts.products, strict=True)]
        totals = _plus(decoding.totals, prompts.totals)
        for _ in range(sweeps):
            for i, row in enumerate(products):
                if row[i] > 0:
                    rest = totals[i] - sum(p * w for p, w in zip(row, weights, strict=True))
                    weights[i] = max(0.0, weights[i] + rest / row[i])


class _Sums:
    """Sums of x x' and of x over the steps of one kind: all that least squares needs, where x . weights should be 1."""

    def __init__(self) -> None:
        self.products = [[0.0] * len(_SCALE) for _ in _SCALE]
        self.totals = [0.0] * len(_SCALE)

    def add(self, x: list[float], forgetting: float) -> None:
        self.products = [
            [forgetting * p + v * u for p, u in zip(row, x, strict=True)]
            for row, v in zip(self.products, x, strict=True)
        ]
        self.totals = [forgetting * total + v for total, v in zip(self.totals, x, strict=True)]


def _plus(a: list[float], b: list[float]) -> list[float]:
    return [p + q for p, q in zip(a, b, strict=True)]
