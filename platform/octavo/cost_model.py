"""How long a step takes, predicted from what is in it and learned from steps that ran.

    seconds = step + token * tokens + sequence * sequences + attended * attended + context * context

`tokens` is what the linear layers multiply, `attended` the sum over tokens of the positions each attends to (what
attention multiplies), `context` the sum over sequences of the positions in their cache (what attention reads). The last
two differ by the length of a prompt's chunk: on a GPU a position costs a decoding stream fifty times what it costs a
token of a prompt.

Fitted by non-negative least squares of the relative error with exponential forgetting: it follows a machine whose speed
drifts, and a stall weighs next to nothing. Steps with prompts and steps without are forgotten separately, or minutes of
decoding would wash out what prompts cost. The sums of the normal equations are kept; after each step a few sweeps of
coordinate descent move the coefficients from where they were, so what recent steps do not tell apart stays as it was.

Its users: the scheduler (largest prefill chunk within a target inter-token latency) and admission (an honest
`Retry-After`); router, autoscaler and planner read the published coefficients.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Seconds per step, and per token, sequence, attended position and context position in it."""

    step: float
    token: float
    sequence: float
    attended: float
    context: float


# brings the features of ordinary steps near 1, which keeps the fit well conditioned
_SCALE = (1.0, 1e-2, 1e-1, 1e-5, 1e-4)


_SWEEPS = 3  # 60 us a step together with the sums
_FIRST_SWEEPS = 30  # while there is nothing to start from


class CostModel:
    """Online fit of a step's duration.

    Args:
        forgetting: weight of the past per step of a kind; 0.98 remembers about 50 steps with prompts and 50 without.
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
        """What was learned; never negative."""
        return Cost(*(w * s for w, s in zip(self._weights, _SCALE, strict=True)))

    @property
    def published(self) -> Cost:
        """What others may act on: zeros until enough steps were seen, for the first ones are no measure."""
        return self.coefficients if self.ready else Cost(0.0, 0.0, 0.0, 0.0, 0.0)

    def predict(self, tokens: int, sequences: int, attended: int, context: int = 0) -> float:
        """Seconds of a step with this content; 0.0 before anything was observed."""
        amounts = 1, tokens, sequences, attended, context
        return sum(per * amount for per, amount in zip(self.coefficients, amounts, strict=True))

    def tokens_within(self, seconds: float, decodes: int, attended: int, context: int) -> int | None:
        """Most prefill tokens beside `decodes` running sequences that keep the step within `seconds`.

        Args:
            attended: positions the running sequences attend to.
            context: tokens already in the cache of the sequence whose prompt is being computed.

        Returns:
            At least 0; None when no limit is known yet.
        """
        cost = self.coefficients
        slope = cost.token + cost.attended * context
        if not self.ready or slope <= 0:
            return None
        without = self.predict(decodes, decodes + 1, attended, attended + context)
        return max(0, int((seconds - without) / slope))

    def observe(self, tokens: int, sequences: int, attended: int, seconds: float, context: int = 0) -> None:
        """Learn from a step that took `seconds`; without `context` the other terms explain everything."""
        x = [s * v / max(seconds, 1e-9) for s, v in zip(_SCALE, (1, tokens, sequences, attended, context), strict=True)]
        (self._prompts if tokens > sequences else self._decoding).add(x, self._forgetting)
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
    """What least squares must know of the steps of one kind: sums of x x' and of x, where x . weights should be 1."""

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
