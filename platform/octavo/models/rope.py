"""Rotary tables: the cos and sin of every position for a `Rope`.

The scalings are those of the papers named in `spec.py`, in the arithmetic (float32, same order) that transformers uses
in `modeling_rope_utils.py`, so that angles agree to the last bit.
"""

from __future__ import annotations

import math

import torch

from octavo.models.spec import FactorScaling, LinearScaling, Llama3Scaling, LongScaling, ModelSpec, Rope, YarnScaling


def inverse_frequencies(rope: Rope, num_positions: int) -> torch.Tensor:
    """Radians per position of each rotated pair: [rotary_dim / 2] float32, of a model that runs so many positions."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling():
            return _llama3(plain, rope.scaling)
        case YarnScaling():
            return _yarn(rope, rope.scaling, exponents)
        case FactorScaling(factors):
            return plain / torch.tensor(factors, dtype=torch.float32)
        case LongScaling(short, long, original):
            divisors = torch.tensor(short if num_positions <= original else long, dtype=torch.float32)
            return torch.reciprocal(divisors * rope.theta**exponents)


def cos_sin_table(rope: Rope, num_positions: int) -> torch.Tensor:
    """[num_positions, rotary_dim] float32: cos in the first half, sin in the second."""
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * inverse_frequencies(rope, num_positions)
    table = torch.empty(num_positions, rope.rotary_dim)
    half = rope.rotary_dim // 2
    torch.cos(angles, out=table[:, :half])
    torch.sin(angles, out=table[:, half:])
    return table.mul_(getattr(rope.scaling, "attention_factor", 1.0))


def query_scales(spec: ModelSpec, num_positions: int) -> torch.Tensor | None:
    """[num_positions] float32 that multiply queries after they are rotated; None where nothing does."""
    if not spec.query_growth:
        return None
    positions = torch.arange(num_positions)
    return 1 + spec.query_growth * torch.log(1 + torch.floor(positions / spec.query_growth_positions))


def _llama3(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    #   wavelength:   short  |  original / high  ..  original / low  |  long
    #   frequency:    plain  |        ramp between the two           |  plain / factor
    original, low, high = scaling.original_max_position, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    ramp = (1 - smooth) * plain / scaling.factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / scaling.factor, ramp)
    return torch.where(wavelength < original / high, plain, scaled)


def _yarn(rope: Rope, scaling: YarnScaling, exponents: torch.Tensor) -> torch.Tensor:
    low, high = _yarn_range(rope, scaling)
    ramp = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    powers = rope.theta**exponents
    return (1.0 / (scaling.factor * powers)) * (1 - keep) + (1.0 / powers) * keep


def _yarn_range(rope: Rope, scaling: YarnScaling) -> tuple[float, float]:
    """The dimensions that turn `beta_fast` and `beta_slow` times over the original context."""

    def dimension(turns: float) -> float:
        span = math.log(scaling.original_max_position / (turns * 2 * math.pi))
        return rope.rotary_dim * span / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    return low, high + 0.001 if low == high else high  # a ramp of width 0 would divide by zero
