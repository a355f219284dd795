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
        _check_taps(self.taps, self.channels)

    @property
    def conv_bias(self) -> bool:
        """Of the convolution; `bias` is that of the matrices."""
        return self.bias

    @property
    def state(self) -> tuple[StatePart, ...]:
        """The last tokens' b * x."""
        return (StatePart((self.taps - 1, self.channels), exact=False),)

    @property
    def inputs(self) -> dict[str, int]:
        """Parts of W_in, and their rows."""
        return {"conv_in": 3 * self.channels}

    @property
    def output(self) -> tuple[str, int]:
        """The part W_out, and its columns."""
        return "conv_out", self.channels


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """out = W_out (norm(rule(q, k, v)) * silu(z)): q, k and v come from a short convolution and a SiLU, and the gated
    delta rule (`octavo_kernels.delta_rule`) decays by e^(decay softplus(a + step)) and writes with sigmoid(b).

    Attributes:
        key_heads, value_heads, key_dim, value_dim: of the rule.
        taps: as in `ShortConv`.
        tiled: value head h takes the keys of head h % key_heads, and not of h // (value_heads / key_heads).
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    tiled: bool = False

    def __post_init__(self) -> None:
        _check_taps(self.taps, min(self.key_heads, self.value_heads, self.key_dim, self.value_dim))
        if self.value_heads % self.key_heads:
            raise ModelError(f"{self.value_heads} value heads cannot share {self.key_heads} key heads evenly")

    @property
    def bias(self) -> bool:
        """As in `ShortConv`."""
        return False

    @property
    def conv_bias(self) -> bool:
        """As in `ShortConv`."""
        return False

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Widths of q, k and v."""
        keys = self.key_heads * self.key_dim
        return keys, keys, self.value_heads * self.value_dim

    @property
    def vectors(self) -> dict[str, int]:
        """What it has beside matrices and taps."""
        return {"decay": self.value_heads, "step": self.value_heads, "scale": self.value_dim}

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return sum(self.sizes)

    @property
    def state(self) -> tuple[StatePart, ...]:
        """What the convolution has seen of the last tokens, and what the rule carries."""
        rule = StatePart((self.value_heads, self.key_dim, self.value_dim), exact=True)
        return StatePart((self.taps - 1, self.channels), exact=False), rule

    @property
    def inputs(self) -> dict[str, int]:
        """As in `ShortConv`."""
        sizes = *self.sizes, self.sizes[2], self.value_heads, self.value_heads
        return dict(zip(("delta_q", "delta_k", "delta_v", "delta_z", "delta_b", "delta_a"), sizes, strict=True))

    @property
    def output(self) -> tuple[str, int]:
        """As in `ShortConv`."""
        return "delta_out", self.sizes[2]


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Mamba-2 (Dao and Gu 2024): out = W_out norm((S^T C + skip x) * silu(z)), where x, B and C come from a short
    convolution and a SiLU, each head's S decays by e^(decay dt) and then takes in dt x B^T, dt is softplus(dt + step),
    and the norm goes over the heads that share B and C.

    Attributes:
        key_heads, key_dim: how many B and C there are, and their values.
        value_heads, value_dim: of x.
        taps: as in `ShortConv`.
        bias, conv_bias: of the matrices, and of the convolution.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    bias: bool
    conv_bias: bool

    def __post_init__(self) -> None:
        _check_taps(self.taps, min(self.key_heads, self.value_heads, self.key_dim, self.value_dim))
        if self.value_heads % self.key_heads:
            raise ModelError(f"{self.value_heads} heads cannot share {self.key_heads} groups' B and C evenly")

    @property
    def tiled(self) -> bool:
        """As in `DeltaNet`."""
        return False

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Widths of x, B and C."""
        keys = self.key_heads * self.key_dim
        return self.value_heads * self.value_dim, keys, keys

    @property
    def vectors(self) -> dict[str, int]:
        """As in `DeltaNet`."""
        heads = self.value_heads
        return {"decay": heads, "step": heads, "scale": self.sizes[0], "skip": heads}

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return sum(self.sizes)

    @property
    def state(self) -> tuple[StatePart, ...]:
        """As in `DeltaNet`."""
        rule = StatePart((self.value_heads, self.key_dim, self.value_dim), exact=True)
        return StatePart((self.taps - 1, self.channels), exact=False), rule

    @property
    def inputs(self) -> dict[str, int]:
        """As in `ShortConv`."""
        sizes = *self.sizes, self.sizes[0], self.value_heads
        return dict(zip(("space_x", "space_b", "space_c", "space_z", "space_dt"), sizes, strict=True))

    @property
    def output(self) -> tuple[str, int]:
        """As in `ShortConv`."""
        return "space_out", self.sizes[0]


Recurrence = ShortConv | DeltaNet | StateSpace


def _check_taps(taps: int, channels: int) -> None:
    if not 2 <= taps <= 64 or channels < 1:
        raise ModelError(f"a convolution over {taps} tokens of {channels} channels is not supported")
