"""Bias, bans and penalties, written into logits at the few places where they change something.

The order is vLLM's: bias, bans, penalties. All rows of a step are laid out together, so that what one costs is a few
microseconds and its tokens. `treat` does it in numpy, for the native runner; `octavo.execution.sampler.treat` is the
same on tensors, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from octavo.step import Float32, Int64, SamplingRows

LARGEST = np.finfo(np.float32).max
"""What a penalty makes of a logit is at most this: 10 / 1e-38 would be infinite, and then no draw is defined."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where flattened logits [L * V] change, P places in all."""

    bias: Int64  # [P]
    added: Float32  # [P]
    banned: Int64  # [P]
    counted: Int64  # [P] in the order of the rows
    counts: Float32  # [P]
    lengths: Int64  # [rows with penalties] of their shares of `counted`
    lines: Int64  # [rows with penalties]
    factors: Float32  # [3, rows with penalties] presence, frequency, repetition


def lay_out(rows: SamplingRows, line: Int64, vocab: int) -> Places:
    """Places of a step's treatment.

    Args:
        line: [R] whose logits each row is drawn from. Rows that share a line are treated alike: they are a request's
            sequences, of which nothing has been drawn.
    """
    bias = {int(line[row]): found for row, found in rows.logit_bias.items()}
    banned = {int(line[row]): found for row, found in rows.banned.items()}
    penalties = {int(line[row]): found for row, found in rows.penalties.items()}
    factors = [(found.presence, found.frequency, found.repetition) for found in penalties.values()]
    return Places(
        bias=_join(tokens + place * vocab for place, (tokens, _) in bias.items()),
        added=np.concatenate([np.zeros(0, np.float32), *(added for _, added in bias.values())]),
        banned=_join(tokens + place * vocab for place, tokens in banned.items()),
        counted=_join(found.tokens + place * vocab for place, found in penalties.items()),
        counts=np.concatenate([np.zeros(0, np.float32), *(found.counts for found in penalties.values())]),
        lengths=np.array([len(found.tokens) for found in penalties.values()], np.int64),
        lines=np.array([*penalties], np.int64),
        factors=np.array(factors, np.float32).reshape(-1, 3).T,
    )


def treat(logits: Float32, line: Int64, rows: SamplingRows) -> Callable[[], None]:
    """Treat logits [L, V] in place.

    Args:
        line: as for `lay_out`.

    Returns:
        what puts the model's own values back.
    """
    places, flat = lay_out(rows, line, logits.shape[1]), logits.reshape(-1)
    touched = np.concatenate([places.bias, places.banned, places.counted])
    own = flat[touched]
    flat[places.bias] += places.added
    flat[places.banned] = -np.inf
    presence, frequency, repetition = np.repeat(places.factors, places.lengths, axis=1)
    x = flat[places.counted]
    with np.errstate(over="ignore", divide="ignore"):
        x = np.where(x > 0, x / repetition, x * repetition)
    x -= frequency * places.counts + presence * (places.counts > 0)
    flat[places.counted] = np.minimum(x, LARGEST)

    def undo() -> None:
        flat[touched] = own

    return undo


def _join(parts: Iterable[Int64]) -> Int64:
    return np.concatenate([np.zeros(0, np.int64), *parts])
