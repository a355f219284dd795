"""How long a step takes, predicted from what is in it and learned from steps that ran.

    seconds = step + token * tokens + sequence * sequences + attended * attended + context * context

`tokens` is what the linear layers multiply, `attended` the sum over tokens of the positions each attends to (what
attention multiplies), `context` the sum over sequences of the positions in their cache (what attention reads). The last
two differ by the length of a prompt's chunk: on a GPU a position costs a decoding stream fifty times what it costs a
token of a prompt. Fitted by recursive least squares with exponential forgetting (Haykin, Adaptive Filter Theory, ch.
10), so it follows a machine whose speed drifts.

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


class CostModel:
    """Online fit of a step's duration.

    Args:
        forgetting: weight of the past per step; 0.99 remembers about 100 steps.
    """

    def __init__(self, forgetting: float = 0.99) -> None:
        self._forgetting = forgetting
        self._weights = [0.0] * 5
        self._covariance = [[100.0 if i == j else 0.0 for j in range(5)] for i in range(5)]
        self.num_observed = 0

    @property
    def ready(self) -> bool:
        """Whether enough steps were seen for predictions to mean anything."""
        return self.num_observed >= 8

    @property
    def coefficients(self) -> Cost:
        """What was learned; never negative."""
        return Cost(*(max(0.0, w * s) for w, s in zip(self._weights, _SCALE, strict=True)))

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
        x = [s * v for s, v in zip(_SCALE, (1, tokens, sequences, attended, context), strict=True)]
        px = [sum(p * v for p, v in zip(row, x, strict=True)) for row in self._covariance]
        denominator = self._forgetting + sum(v * p for v, p in zip(x, px, strict=True))
        predicted = sum(w * v for w, v in zip(self._weights, x, strict=True))
        error = seconds - predicted
        if self.ready:  # one step that waited for a busy machine must not bend the fit: Huber's clipping
            error = min(error, 3 * max(predicted, 1e-4))
        gain = [p / denominator for p in px]
        self._weights = [w + g * error for w, g in zip(self._weights, gain, strict=True)]
        # Forgetting directions that are never excited would grow without bound ("wind-up"): cap the variance.
        forget = self._forgetting if max(self._covariance[i][i] for i in range(5)) < 1e4 else 1.0
        self._covariance = [
            [(p - g * q) / forget for p, q in zip(row, px, strict=True)]
            for row, g in zip(self._covariance, gain, strict=True)
        ]
        self.num_observed += 1
