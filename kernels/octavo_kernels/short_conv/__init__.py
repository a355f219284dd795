"""A causal convolution of few taps over each channel of ragged sequences."""

from __future__ import annotations

from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.short_conv import reference
from octavo_kernels.state_use import StateUse


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, query_start: Tensor, states: Tensor, use: StateUse
) -> Tensor:
    """For each token the sum over its sequence's last W tokens, itself the last, of weight[:, j] x[t - W + 1 + j].

    Its state is the last W - 1 rows of x. A token's sum has one order, whatever the step holds beside it.

    Args:
        x: [T, C].
        weight: [C, W], W at least 2.
        bias: [C], added to the sum.
        query_start: [S + 1] int32, where each sequence's tokens begin.
        states: [N, W - 1, C], written in place; the newest row is the last.
        use: which of them.

    Returns:
        [T, C], summed in float32, of the type of `x`, which weight, bias and states share.

    Raises:
        ValueError: shapes or types do not fit.
    """
    check_floats(x=x, weight=weight, states=states, **({} if bias is None else {"bias": bias}))
    if x.ndim != 2 or weight.ndim != 2 or len(weight) != x.shape[1] or weight.shape[1] < 2:
        raise ValueError(f"x must be [T, C] and weight [C, 2 or more]: {tuple(x.shape)}, {tuple(weight.shape)}")
    if states.shape[1:] != (weight.shape[1] - 1, x.shape[1]):
        raise ValueError(f"states must be [N, {weight.shape[1] - 1}, {x.shape[1]}], got {tuple(states.shape)}")
    return backend(reference.short_conv, x, gpu=False, cpu=False)(x, weight, bias, query_start, states, use)
