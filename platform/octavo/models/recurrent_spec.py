"""What layers have in place of attention: it carries a state of one size from token to token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from octavo.errors import ModelError


class StatePart(NamedTuple):
    """A tensor of one layer's state.

    Attributes:
        exact: float32, whatever the model's type.
    """

    shape: tuple[int, ...]
    exact: bool

    def num_bytes(self, itemsize: int) -> int:
        """Where values of the model's type have so many bytes."""
        return math.prod(self.shape) * (4 if self.exact else itemsize)


@dataclass(frozen=True, slots=True)
class ShortConv:
    """out = W_out (c * conv(b * x)), where b, c and x are the thirds of W_in h, and the convolution goes over each
    channel's last tokens.

    Attributes:
        channels: of b, c and x: the model's width.
        taps: tokens that the convolution sees, the present one included.
        bias: of all three.
    """

    channels: int
    taps: int
    bias: bool

    def __post_init__(self) -> None:
        if not 2 <= self.taps <= 64 or self.channels < 1:
            raise ModelError(f"a convolution over {self.taps} tokens of {self.channels} channels is not supported")

    @property
    def state(self) -> tuple[StatePart, ...]:
        """The last tokens' b * x."""
        return (StatePart((self.taps - 1, self.channels), exact=False),)

    @property
    def inputs(self) -> int:
        """Rows of W_in."""
        return 3 * self.channels

    @property
    def outputs(self) -> int:
        """Columns of W_out."""
        return self.channels


Recurrence = ShortConv
