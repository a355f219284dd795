"""The gated delta rule in plain PyTorch: the n-th tokens of all sequences together, then the next ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from octavo_kernels.state_use import StateUse

_EPS = 1e-6  # of the unit length


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
    heads = v.shape[1] // q.shape[1]
    q, k = (_unit(x.float()) if erase else x.float() for x in (q, k))
    q, k = (x.repeat_interleave(heads, 1).unsqueeze(3) for x in (q * q.shape[2] ** -0.5 if erase else q, k))
    v, kept = v.float(), exactly(torch.exp, decay)[..., None, None]
    starts, saves = query_start.tolist(), _by_place(query_start, use)
    state, out = use.read(states), torch.empty_like(v)
    for place in range(max(end - start for start, end in pairwise(starts))):
        rows = [s for s, start in enumerate(starts[:-1]) if start + place < starts[s + 1]]
        t = torch.tensor([starts[s] + place for s in rows], device=q.device)
        at = torch.tensor(rows, device=q.device)
        now = state[at] * kept[t]
        change = (v[t] - _sum(now * k[t]) if erase else v[t]) * beta[t][..., None]
        now = now + k[t] * change.unsqueeze(2)
        out[t] = _sum(now * q[t])
        state[at] = now
        for sequence, target in saves.get(place, ()):
            states[target] = state[sequence]
    return out


def exactly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function in float32, whose bits depend on its argument alone.

    PyTorch computes whole vectors in another way than what is left over at the end of a thread's part.
    """
    return function(x.double()).float()


def _by_place(query_start: Tensor, use: StateUse) -> dict[int, list[tuple[int, int]]]:
    """Place of a token in its sequence -> sequences that leave their states behind it, and where."""
    found: dict[int, list[tuple[int, int]]] = {}
    starts, sequence = query_start.tolist(), 0
    for token, target in zip(use.saved.tolist(), use.targets.tolist(), strict=True):
        while starts[sequence + 1] <= token:
            sequence += 1
        found.setdefault(token - starts[sequence], []).append((sequence, target))
    return found


def _unit(x: Tensor) -> Tensor:
    """[T, H, D] of length 1."""
    return x * torch.rsqrt(_sum((x * x).unsqueeze(3)) + _EPS)


def _sum(x: Tensor) -> Tensor:
    """[R, H, D, E] -> [R, H, E], halves upon each other: a library's order may depend on R."""
    while (size := x.shape[2]) > 1:
        half = (size + 1) // 2
        x = torch.cat([x[:, :, : size - half] + x[:, :, half:], x[:, :, size - half : half]], 2)
    return x[:, :, 0]
