"""How long a step may take before its engine counts as dead.

No fixed time will do: a step of 1,024 tokens takes an 8B model 65 s on two cores, and one that takes 5 ms otherwise
hangs if it takes seconds. So a step is given FACTOR times what is expected, and at least LEAST.

What is expected is the larger of two predictions: the cost model's, and the step's tokens times the mean seconds per
token so far. The second is for a step unlike all before it, such as a prompt after nothing but decoding; a token of a
prompt takes less time than one that is decoded alone, so the mean errs on the patient side. It is multiplied by how
much longer than predicted the worst of the last steps took: a machine that others use too makes steps late by the same
factor again and again. That factor is forgotten by 1 % a step.

Some steps may take long once, and are given FIRST and a second per token beside it (sixteen times what an 8B model
needs on two cores): the first steps of a kind, in which kernels are compiled or captured, and a step after IDLE seconds
without one, since when the weights may have left memory. A kind is what kernels are specialised for, roughly: whether
there are prompts, the magnitudes of tokens and sequences, and whether 16 divides them.

Only seconds in which the process was awake count (`Silence`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from octavo.cost_model import CostModel, StepWork

LEAST = 5.0
"""Seconds that any step may take. Two cores with ten busy processes give a step of 5 ms a fifth of its time and let its
threads wait for each other for some 10 ms at each of its 100 barriers: a second or so."""

FIRST = 60.0
"""Seconds that the first steps of a kind may take beside a second per token: Triton compiles a kernel in a second or
two, and a step has a dozen; 5 GB of weights take 25 s from a disk of 200 MB/s."""

FACTOR = 10
TRIES = 3  # steps of a kind until it is known
IDLE = 30.0

LONGEST_LOOK = 1.0
"""Most seconds that count between two looks: who looked less often was not awake, or has nobody waiting."""

_UNKNOWN = 1.0  # seconds per token
_FORGETTING = 0.99


class Patience:
    """Learns from the steps that ran; `model` is what the scheduler learns from them."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._tokens = 0
        self._seconds = 0.0
        self._kinds: Counter[tuple[bool, int, int, bool, bool]] = Counter()
        self._worst = 1.0  # of the last steps, their seconds over those predicted

    def observe(self, work: StepWork, seconds: float) -> None:
        """A step has ended; to be called before the cost model learns of it."""
        kind = _kind(work)
        if self._kinds[kind] >= TRIES:
            late = seconds / max(self._expected(work), 1e-9)
            self._worst = max(late, 1 + _FORGETTING * (self._worst - 1))
        self._tokens += work.tokens
        self._seconds += seconds
        self._kinds[kind] += 1

    def seconds(self, work: StepWork, idle: float = 0.0) -> float:
        """What a step may take.

        Args:
            idle: seconds since the last one.
        """
        expected = self._expected(work) * self._worst if self._tokens else 0.0
        if self._kinds[_kind(work)] < TRIES or idle > IDLE:
            return FIRST + max(_UNKNOWN * work.tokens, FACTOR * expected)
        return max(LEAST, FACTOR * expected)

    def _expected(self, work: StepWork) -> float:
        return max(self._model.predict(work), work.tokens * self._seconds / self._tokens)


def _kind(work: StepWork) -> tuple[bool, int, int, bool, bool]:
    tokens, sequences = work.tokens, work.sequences
    return work.has_prompts, tokens.bit_length(), sequences.bit_length(), tokens % 16 == 0, sequences % 16 == 0


class Silence:
    """How long an engine has said nothing, in seconds in which somebody was awake to hear it.

    A process that was stopped, or whose machine was, wakes up to a clock that has gone on. So the time between two
    looks counts for LONGEST_LOOK at most; whoever waits for an engine looks once a second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat = self._looked = clock()
        self._seconds = 0.0

    def since(self, beat: float) -> float:
        """Seconds since the last sign of life, which came at `beat` on the clock."""
        now = self._clock()
        if beat != self._beat:
            self._beat = self._looked = beat
            self._seconds = 0.0
        self._seconds += min(now - self._looked, LONGEST_LOOK)
        self._looked = now
        return self._seconds
