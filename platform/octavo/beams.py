"""What a request says of beam search; `octavo.engine.beam` does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from octavo.errors import BadRequest

MAX_WIDTH = 1024
"""Most beams of a request; an engine runs at most `max_num_seqs` at once."""

MAX_PENALTY = 5.0
"""Largest length penalty, and smallest with its sign turned: 10**6 tokens to this power are a float32."""


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """The numbers of a search, in the words of transformers' `generate`.

    Attributes:
        width: sequences that go on together (`num_beams`).
        length_penalty: a text's score is the sum of its log probabilities over its number of tokens to this power.
            Log probabilities are negative: above 0 it favours long texts.
        early_stopping: True ends with the first `width` texts that are complete; False when what runs would not score
            higher if it ended now; "never" when it cannot score higher whatever its length.

    Raises:
        BadRequest: on construction, naming the parameter that is wrong.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if type(self.width) is not int or not 1 <= self.width <= MAX_WIDTH:
            raise BadRequest(f"beam_width must be an integer of 1 to {MAX_WIDTH}, got {self.width!r:.80}", "beam_width")
        penalty = self.length_penalty
        number = isinstance(penalty, (int, float)) and not isinstance(penalty, bool)
        if not number or not math.isfinite(penalty) or abs(penalty) > MAX_PENALTY:
            raise BadRequest(
                f"length_penalty must be a number of -{MAX_PENALTY:g} to {MAX_PENALTY:g}, got {penalty!r:.80}",
                "length_penalty",
            )
        if type(self.early_stopping) is not bool and self.early_stopping != "never":  # 1 is not True here
            raise BadRequest(
                f'early_stopping must be true, false or "never", got {self.early_stopping!r:.80}', "early_stopping"
            )

    def score(self, total: float, length: int) -> float:
        """Of a text.

        Args:
            total: sum of its log probabilities.
            length: its tokens, the end token among them.
        """
        weight: float = length**self.length_penalty
        return total / weight
