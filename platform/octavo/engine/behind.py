"""Guesses of a sequence that must keep to something: which can be verified, and what the rows behind them keep to.

    newest | guess 0 | guess 1 | ... | guess k - 1
    row 0     row 1     row 2            row k

Row 0 keeps to what the sequence's constraint says now. A copy of that takes in one guess after the other and says what
the rows behind them keep to. Guesses end before one that the grammar does not permit, that completes it, or after which
tokens are forced: those are known without any row (`Sequence.verify`).

A guess takes 5 us for the copy's part, a mask of 49,152 tokens included, and 20 us in all (JSON with two texts in it).
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from octavo.engine.constrained import Constraint
from octavo.engine.sequence import Sequence
from octavo.step import Int64, SamplingRows, Uint32


class Behind(NamedTuple):
    """What the row after a guess keeps to.

    Attributes:
        mask: tokens that it may draw; None: all but those banned.
        banned: tokens that it does not draw; they are taken from the mask already.
    """

    mask: Uint32 | None
    banned: Int64


class Checked(NamedTuple):
    """Guesses that can be verified, the rows behind them, and the seconds that it took to find out."""

    tokens: list[int]
    behind: list[Behind]
    seconds: float


def may_guess(seq: Sequence) -> bool:
    """Whether anything may be proposed for a sequence that keeps to something.

    Not where tokens wait for their log probabilities or would have to, nor where its grammar takes long.
    """
    constraint = seq.constraint
    return constraint is None or not (seq.is_scored or seq.untold or constraint.suspect or constraint.error)


def checked(seq: Sequence, guesses: list[int]) -> Checked:
    """Those of the guesses that can be verified."""
    begin = time.perf_counter()
    assert seq.constraint is not None
    constraint, so_far, behind = seq.constraint.copy(), list(seq.token_ids), list[Behind]()
    for token in guesses:
        so_far.append(token)
        if not constraint.permits(token):
            break
        constraint.push(so_far, seq.num_prompt)
        if constraint.error is not None or constraint.complete or constraint.forced(so_far, seq.num_prompt):
            break
        if (row := _behind(constraint, so_far, seq.num_prompt)) is None:
            break
        behind.append(row)
    return Checked(guesses[: len(behind)], behind, time.perf_counter() - begin)


def _behind(constraint: Constraint, so_far: list[int], start: int) -> Behind | None:
    """The row after `so_far`; None where no token is left to draw: that is found out when it is reached."""
    never = constraint.rules.never
    found = constraint.banned(so_far, start)
    banned = np.union1d(never, np.array(found, np.int64)) if found else never
    if not constraint.needs_mask:
        return Behind(None, banned)
    mask = np.full(constraint.rules.words, 2**32 - 1, np.uint32)
    if constraint.matcher is not None:
        constraint.make_mask(mask.ctypes.data, mask.nbytes)
        if constraint.matcher.is_error():
            return None
    constraint.exclude(mask, banned)
    constraint.prefer(mask, len(so_far) - start)
    return Behind(mask, banned) if mask.any() else None


def add_masks(rows: SamplingRows, behind: list[tuple[int, Uint32]]) -> None:
    """Put the masks of rows behind guesses among those of other rows."""
    places = np.array([row for row, _ in behind], np.int32)
    masks = np.array([mask for _, mask in behind])
    if rows.masks is not None and rows.masked is not None:
        places, masks = np.concatenate([rows.masked, places]), np.concatenate([rows.masks, masks])
    order = np.argsort(places)
    rows.masked, rows.masks = places[order], masks[order]
