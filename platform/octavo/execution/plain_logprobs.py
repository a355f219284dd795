"""Log probabilities in numpy, bit for bit those of `octavo.execution.sampler` on a CPU: they need no torch.

One pass over a row for its norm is the cost, and one for its likeliest tokens where those are asked for. What a row
gets depends on nothing but the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from octavo.execution.likeliest import likeliest
from octavo.step import Float32, Int64, LogprobRow, SamplingRows
from octavo_kernels.log_norm import log_norms

T = TypeVar("T")

_LOGIT_ROWS = 256  # prompt positions whose logits exist at once: 256 x 256k x 4 B = 256 MiB for the largest vocabulary

_NONE = np.zeros(0, np.int64)


def sampled_logprobs(logits: Float32, logits_row: Int64, tokens: Int64, rows: SamplingRows) -> dict[int, LogprobRow]:
    """Log probabilities of the rows that ask for some.

    Args:
        logits: [L, V] the model's own.
        logits_row: [R] which of the L each row was drawn from.
        tokens: [R] what was drawn; -1 where that failed.
    """
    wanted = np.flatnonzero((rows.num_logprobs >= 0) & (tokens >= 0))
    named = [rows.named.get(row, _NONE) for row in wanted.tolist()]
    found = _rows(logits, logits_row[wanted], tokens[wanted], rows.num_logprobs[wanted].tolist(), named)
    return dict(zip(wanted.tolist(), found, strict=True))


def logprob_rows(logits: Float32, tokens: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log probabilities under logits [R, V] of one token per row and of the `counts` likeliest ones beside it."""
    each = np.arange(len(tokens))
    return _rows(np.ascontiguousarray(logits), each, np.array(tokens, np.int64), counts, [_NONE] * len(tokens))


def prompt_logprobs(
    wanted: list[tuple[int, int, int]],
    logits: Callable[[list[int]], T | None],
    rows_of: Callable[[T, list[int], list[int]], list[LogprobRow]],
) -> list[LogprobRow]:
    """Log probabilities of prompt tokens.

    Args:
        wanted: `StepBatch.prompt_logprobs`.
        logits: flat token indices -> their logits [n, V], or None on a rank that only gives its part of them.
        rows_of: `logprob_rows` for these logits.
    """
    rows: list[LogprobRow] = []
    for start in range(0, len(wanted), _LOGIT_ROWS):
        places, tokens, counts = map(list, zip(*wanted[start : start + _LOGIT_ROWS], strict=True))
        if (scores := logits(places)) is not None:
            rows += rows_of(scores, tokens, counts)
    return rows


def _rows(logits: Float32, places: Int64, tokens: Int64, counts: list[int], named: Sequence[Int64]) -> list[LogprobRow]:
    """Row r is of logits[places[r]], and asks for `counts[r]` alternatives and for the tokens `named[r]`."""
    norms, ranks = log_norms(logits, places, tokens)
    own = (logits[places, tokens] - norms).tolist()
    found = []
    for row, (token, place, count, names) in enumerate(
        zip(tokens.tolist(), places.tolist(), counts, named, strict=True)
    ):
        if not count and not len(names):
            found.append(LogprobRow([token], [own[row]], int(ranks[row])))
            continue
        others = np.concatenate((likeliest(logits[place], count), names)) if count else names
        values = (logits[place][others] - norms[row]).tolist()
        found.append(LogprobRow([token, *others.tolist()], [own[row], *values], int(ranks[row]), len(names)))
    return found
