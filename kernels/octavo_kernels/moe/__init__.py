"""Mixture of experts (Shazeer et al. 2017): a router picks a few MLPs for each token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.linear.quantized import QuantizedWeight, has_even_groups
from octavo_kernels.moe import reference

ExpertWeights = Tensor | QuantizedWeight
"""[E n, k]: all experts' matrices of n outputs, stacked by rows."""


def route(
    scores: Tensor,
    num_chosen: int,
    *,
    normalise: bool,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    choice_bias: Tensor | None = None,
    groups: tuple[int, int] = (0, 0),
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Choose the likeliest experts of each token.

    Args:
        scores: [T, E], the router's logits.
        num_chosen: experts per token.
        normalise: normalise the chosen experts' shares to add up to 1; otherwise they come from the softmax over all
            experts.
        scoring: what makes probabilities of the logits.
        choice_bias: [E] float32, added to the probabilities for the choice alone.
        groups: experts come in as many groups, of which the second number are kept first: those with the largest
            probability, or with a bias the largest sum of two.
        scale: multiplies the shares.

    Returns:
        Shares [T, num_chosen] float32, largest first, and experts [T, num_chosen] int32; among equal scores the first
        expert wins.

    Raises:
        ValueError: there are not that many experts.
    """
    check_floats(scores=scores)
    if not 1 <= num_chosen <= scores.shape[1]:
        raise ValueError(f"{num_chosen} of {scores.shape[1]} experts cannot be chosen")
    if scoring == "softmax" and choice_bias is None and groups[0] <= 1 and scale == 1.0:
        run = backend(reference.route, scores, gpu=len(scores) > 0, cpu=False)
        return run(scores, num_chosen, normalise=normalise)
    options = {"scoring": scoring, "choice_bias": choice_bias, "groups": groups, "scale": scale}
    return reference.route(scores, num_chosen, normalise=normalise, **options)  # type: ignore[arg-type]


def moe(
    x: Tensor,
    shares: Tensor,
    experts: Tensor,
    gate_up: ExpertWeights,
    down: ExpertWeights,
    num_experts: int,
    *,
    biases: tuple[Tensor, Tensor] | None = None,
    limit: float | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    """For each token the sum over its experts of `share * down(silu(gate) * up)`.

    Nothing waits for the device, and shapes do not depend on the chosen experts, so a CUDA graph can capture it.

    Args:
        x: [T, D].
        shares: [T, K] float32.
        experts: [T, K] int32, below `num_experts`.
        gate_up: [E 2 I, D]; for each expert first the gate's rows, then those of `up`.
        down: [E D, I].
        biases: [E 2 I] and [E D] of `x`'s type, added to the products.
        limit: computes `(up + 1) * gate * sigmoid(1.702 * gate)` instead, of a gate that is at most the limit and of an
            `up` within it on either side (gpt-oss).
        batch_invariant: on a GPU, as for `quantized_linear`.

    Returns:
        [T, D] of `x`'s type.

    Raises:
        ValueError: shapes or types do not fit.
    """
    check_floats(x=x)
    width, inner = x.shape[1], down.shape[1]
    shapes = tuple(gate_up.shape), tuple(down.shape)
    if shapes != ((num_experts * 2 * inner, width), (num_experts * width, inner)):
        raise ValueError(f"weights {shapes} do not fit x {tuple(x.shape)} and {num_experts} experts")
    if shares.shape != experts.shape or shares.dtype != torch.float32 or experts.dtype != torch.int32:
        raise ValueError(f"shares {shares.dtype} {list(shares.shape)}, experts {experts.dtype} {list(experts.shape)}")
    even = all(isinstance(weight, Tensor) or has_even_groups(weight) for weight in (gate_up, down))
    run = backend(reference.moe, x, gpu=even and len(x) > 0, cpu=False)
    weights = gate_up, down, num_experts
    return run(x, shares, experts, *weights, biases=biases, limit=limit, batch_invariant=batch_invariant)
