"""Masks, bias, bans and penalties on any device, as `octavo.execution.treatment` defines them.

All rows of a step are laid out together: the number of launches does not depend on how many there are, nor is anything
read back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.execution.transfer import to_device
from octavo.execution.treatment import LARGEST
from octavo.step import Float32, Int64, SamplingRows
from octavo_kernels.token_mask import mask_tensors_


@dataclass(frozen=True, slots=True)
class _Places:
    """Where flattened logits [R * V] change, P places in all."""

    bias: Int64  # [P]
    added: Float32  # [P]
    banned: Int64  # [P]
    counted: Int64  # [P] in the order of the rows
    counts: Float32  # [P]
    lengths: Int64  # [rows with penalties] of their shares of `counted`
    rows: Int64  # [rows with penalties]
    factors: Float32  # [3, rows with penalties] presence, frequency, repetition


def apply_treatment(logits: Tensor, rows: SamplingRows, unlisted: Tensor | None = None) -> None:
    """Apply the treatment of all rows to logits [R, V], in place.

    Args:
        unlisted: as for `octavo.execution.sampler.begin_sample`.
    """
    vocab, flat = logits.shape[1], logits.view(-1)
    if rows.masks is not None and rows.masked is not None:
        masked = to_device(rows.masked.astype(np.int64), flat.device)
        mask_tensors_(logits, masked, to_device(rows.masks.view(np.int32), flat.device))
    places = _lay_out(rows, vocab)
    bias, banned, counted = (to_device(x, flat.device) for x in (places.bias, places.banned, places.counted))
    flat.index_add_(0, bias, to_device(places.added, flat.device))
    flat.index_fill_(0, banned, -torch.inf)
    if rows.penalties:
        _penalise(flat, places, counted, vocab, unlisted)


def _lay_out(rows: SamplingRows, vocab: int) -> _Places:
    penalties = rows.penalties.values()
    factors = [(found.presence, found.frequency, found.repetition) for found in penalties]
    return _Places(
        bias=_join(tokens + row * vocab for row, (tokens, _) in rows.logit_bias.items()),
        added=np.concatenate([np.zeros(0, np.float32), *(added for _, added in rows.logit_bias.values())]),
        banned=_join(tokens + row * vocab for row, tokens in rows.banned.items()),
        counted=_join(found.tokens + row * vocab for row, found in rows.penalties.items()),
        counts=np.concatenate([np.zeros(0, np.float32), *(found.counts for found in penalties)]),
        lengths=np.array([len(found.tokens) for found in penalties], np.int64),
        rows=np.array([*rows.penalties], np.int64),
        factors=np.array(factors, np.float32).reshape(-1, 3).T,
    )


def _join(parts: Iterable[Int64]) -> Int64:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _penalise(flat: Tensor, places: _Places, counted: Tensor, vocab: int, unlisted: Tensor | None) -> None:
    """Penalties at the places counted, and where `unlisted` adds one to the count, or is the first of its token."""
    device = flat.device
    of_rows, counts = to_device(places.factors, device), to_device(places.counts, device)
    row = to_device(np.repeat(np.arange(len(places.rows)), places.lengths), device)
    if unlisted is None:
        _write_penalties(flat, counted, of_rows[:, row], counts)
        return
    rows = to_device(places.rows, device)
    is_there = unlisted[rows] >= 0
    last = rows * vocab + unlisted[rows].clamp(min=0)
    again = (counted == last[row]) & is_there[row]
    is_new = is_there.int().index_add(0, row, -again.int()) > 0
    _write_penalties(flat, counted, of_rows[:, row], counts + again)
    own = flat[last]
    _write_penalties(flat, last, of_rows, torch.ones_like(own))
    flat.index_copy_(0, last, torch.where(is_new, flat[last], own))


def _write_penalties(flat: Tensor, places: Tensor, factors: Tensor, counts: Tensor) -> None:
    """As in `octavo.execution.treatment.penalised`."""
    presence, frequency, repetition = factors
    x = flat[places]
    x = torch.where(x > 0, x / repetition, x * repetition)
    x = x - (frequency * counts + presence * (counts > 0))
    flat.index_copy_(0, places, x.clamp(max=LARGEST))
