"""Attention inside each of a step's texts: one text at a time, or on a GPU those of similar lengths together."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_QUERIES = 256
"""Queries of a layer with a window that are computed together: their keys are these and a window before and after."""

_SHORTEST = 16
"""Texts are padded to powers of two from here on: at most half of a group's tokens are padding."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some texts, padded to one length L: a launch for each of 64 texts would cost more than they do.

    Attributes:
        tokens: [n, L] index in the step of each text's tokens; padding repeats its last one.
        is_real: [n, L] whether it is no padding.
    """

    tokens: Tensor
    is_real: Tensor


def groups_of(ranges: list[tuple[int, int]], device: torch.device) -> list[Group]:
    """The groups of a step's texts, given where each begins and ends."""
    by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for begin, end in ranges:
        by_length[padded(end - begin)].append((begin, end))
    return [_group(length, members, device) for length, members in by_length.items()]


def padded(length: int) -> int:
    """The length that a text has in its group."""
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def _group(length: int, members: list[tuple[int, int]], device: torch.device) -> Group:
    places = torch.arange(length, device=device)
    begins, ends = torch.tensor(members, device=device).T[:, :, None]
    return Group(torch.minimum(begins + places, ends - 1), begins + places < ends)


def attend_group(qkv: Tensor, group: Group, window: int | None, bias: Tensor | None, scale: float) -> Tensor:
    """[T, 3, H, head_dim] of a whole step -> [tokens of the group's texts, H head_dim], text after text."""
    q, k, v = qkv[group.tokens].permute(2, 0, 3, 1, 4)  # [n, H, L, head_dim] each
    length = group.tokens.shape[1]
    mask = group.is_real[:, None, None]
    if window is not None and window < length:
        places = torch.arange(length, device=qkv.device)
        mask = mask & ((places[:, None] - places).abs() < window)
    if bias is not None:
        mask = torch.where(mask, bias[:, :length, :length], -torch.inf).to(q.dtype)
    attended = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return attended.transpose(1, 2)[group.is_real].flatten(1)


def attend(qkv: Tensor, window: int | None, bias: Tensor | None, scale: float) -> Tensor:
    """One text's [L, 3, H, head_dim] -> [L, H head_dim].

    Args:
        window: a query sees keys that are less than this away; None sees all.
        bias: [H, at least L, at least L], added to the scores.
    """
    q, k, v = qkv.permute(1, 2, 0, 3)[:, None]  # [1, H, L, head_dim] each
    length = len(qkv)
    if window is None or length <= window:
        mask = None if bias is None else bias[:, :length, :length].to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    else:
        starts = range(0, length, _QUERIES)
        attended = torch.cat([_near(q, k, v, begin, window, scale) for begin in starts], dim=2)
    return attended[0].transpose(0, 1).reshape(length, -1)


def _near(q: Tensor, k: Tensor, v: Tensor, begin: int, window: int, scale: float) -> Tensor:
    """Some of a text's queries over the keys that are less than a window away from one of them."""
    end = min(begin + _QUERIES, q.shape[2])
    first, last = max(0, begin - window + 1), min(q.shape[2], end + window - 1)
    queries, keys = torch.arange(begin, end, device=q.device), torch.arange(first, last, device=q.device)
    mask = (queries[:, None] - keys).abs() < window
    k, v = k[:, :, first:last], v[:, :, first:last]
    return F.scaled_dot_product_attention(q[:, :, begin:end], k, v, mask, scale=scale)
