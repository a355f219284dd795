"""What may follow a beam: its likeliest next tokens (`octavo.step.Candidates`), in numpy.

`octavo.execution.beam_tensors` does the same on any device. A row's candidates depend on nothing but the row.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from octavo.execution.likeliest import likeliest
from octavo.execution.treatment import apply_masks, apply_treatment
from octavo.step import Candidates, Float32, Int64, SamplingRows
from octavo_kernels.log_norm import log_norms


def candidates(logits: Float32, logits_row: Int64, tokens: Int64, rows: SamplingRows) -> dict[int, Candidates]:
    """Those of all rows that want some.

    Args:
        logits: [L, V] the model's own.
        logits_row: [R] which of the L each row is of.
        tokens: [R] what was drawn; -1 where the logits are not finite, and then there are none.
    """
    wanted = [row for row in rows.beams if tokens[row] >= 0]
    if not wanted:
        return {}
    places = logits_row[wanted]
    norms, _ = log_norms(logits, places, tokens[wanted])
    own = logits[places] - norms[:, None]
    scores, alone = own, rows_alone(rows, wanted)
    if alone.are_treated:
        scores = own.copy()
        apply_masks(scores, alone)
        apply_treatment(scores, np.arange(len(wanted)), alone)
    best = [_best(values, rows.beams[row]) for row, values in zip(wanted, scores, strict=True)]
    return {
        row: Candidates(ids, scores[i][ids], own[i][ids], _ranks(own[i], ids, counted=alone.are_treated))
        for i, (row, ids) in enumerate(zip(wanted, best, strict=True))
    }


def rows_alone(rows: SamplingRows, wanted: list[int]) -> SamplingRows:
    """The treatment of some rows, numbered from 0."""
    place = {row: i for i, row in enumerate(wanted)}
    masks, masked = rows.masks, rows.masked
    if masks is not None and masked is not None:
        kept = [i for i, row in enumerate(masked.tolist()) if row in place]
        masks = masks[kept] if kept else None
        masked = np.array([place[int(masked[i])] for i in kept], np.int32)
    return dataclasses.replace(
        rows,
        penalties={place[row]: value for row, value in rows.penalties.items() if row in place},
        logit_bias={place[row]: value for row, value in rows.logit_bias.items() if row in place},
        banned={place[row]: value for row, value in rows.banned.items() if row in place},
        masks=masks,
        masked=masked,
    )


def _best(values: Float32, count: int) -> Int64:
    """Ids of the largest values; -inf is none."""
    ids = likeliest(values, count)
    return ids[values[ids] > -np.inf]


def _ranks(own: Float32, ids: Int64, *, counted: bool) -> Int64:
    """Of tokens by the model's own values; they are the best in order where nothing has treated these."""
    if not counted:
        return np.arange(1, len(ids) + 1)
    return np.array([1 + np.count_nonzero(own > own[token]) for token in ids.tolist()], np.int64)
