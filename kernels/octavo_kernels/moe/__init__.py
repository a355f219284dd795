"""Mixture of experts (Shazeer et al. 2017): a router picks a few MLPs for each token."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.dispatch import backend, check_floats
from octavo_kernels.linear.quantized import QuantizedWeight, has_even_groups
from octavo_kernels.moe import reference

ExpertWeights = Tensor | QuantizedWeight
"""[E n, k]: all experts' matrices of n outputs, stacked by rows."""


def route(scores: Tensor, num_chosen: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose the likeliest experts of each token.

    Args:
        scores: [T, E], the router's logits.
        num_chosen: experts per token.
        normalise: normalise the chosen experts' shares to add up to 1; otherwise they come from the softmax over all
            experts.

    Returns:
        Shares [T, num_chosen] float32, largest first, and experts [T, num_chosen] int32; among equal scores the first
        expert wins.

    Raises:
        ValueError: there are not that many experts.
    """
    check_floats(scores=scores)
    if not 1 <= num_chosen <= scores.shape[1]:
        raise ValueError(f"{num_chosen} of {scores.shape[1]} experts cannot be chosen")
    run = backend(reference.route, scores, gpu=len(scores) > 0, cpu=False)
    return run(scores, num_chosen, normalise=normalise)


def moe(
    x: Tensor,
    shares: Tensor,
    experts: Tensor,
    gate_up: ExpertWeights,
    down: ExpertWeights,
    num_experts: int,
    *,
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
    return run(x, shares, experts, gate_up, down, num_experts, batch_invariant=batch_invariant)
