"""The gated delta rule (Yang et al. 2025) over ragged sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.delta_rule import reference
from octavo_kernels.dispatch import backend
from octavo_kernels.state_use import StateUse


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    query_start: Tensor,
    states: Tensor,
    use: StateUse,
    *,
    erase: bool = True,
) -> Tensor:
    """For each token and value head, with q and k of unit length and q / sqrt(Dk):

        S = e^decay S;  S = S + k (beta (v - S^T k))^T;  out = S^T q

    S is the head's state. Key heads serve consecutive value heads. Tokens are taken in one by one, and each sum has one
    order, so that neither chunks nor the rest of the step show in a token's bits.

    Args:
        q, k: [T, Hk, Dk].
        v: [T, Hv, Dv].
        decay, beta: [T, Hv] float32.
        query_start: [S + 1] int32, where each sequence's tokens begin.
        states: [N, Hv, Dk, Dv] float32, written in place.
        use: which of them.
        erase: without it q and k are taken as they are, and nothing is taken off v: the rule of state spaces.

    Returns:
        [T, Hv, Dv] float32.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if q.shape != k.shape or q.ndim != 3 or v.ndim != 3 or v.shape[1] % q.shape[1]:
        raise ValueError(f"q and k must be [T, Hk, Dk], v [T, n Hk, Dv]: {tuple(q.shape)}, {tuple(v.shape)}")
    if states.shape[1:] != (v.shape[1], q.shape[2], v.shape[2]) or states.dtype != torch.float32:
        raise ValueError(f"states must be [N, {v.shape[1]}, {q.shape[2]}, {v.shape[2]}] float32")
    if not decay.shape == beta.shape == v.shape[:2]:
        raise ValueError(f"decay and beta must be {list(v.shape[:2])}")
    run = backend(reference.delta_rule, q, gpu=False, cpu=False)
    return run(q, k, v, decay, beta, query_start, states, use, erase=erase)
