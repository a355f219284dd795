"""Bias, bans and penalties, written into logits at the places where they change something.

The order is vLLM's: masks, bias, bans, penalties. What a mask forbids stays so whatever comes after it. So whoever
draws may read the masks then (`octavo_kernels.sampling.sample`), and nothing is written for them. This is done in
numpy, for logits on a CPU; `octavo.execution.tensor_treatment` does the same on any device, bit for bit, and writes
masks. A row costs some microseconds, and 13 ns per token that its penalties count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octavo.step import Float32, Int64, Penalties, SamplingRows
from octavo_kernels.token_mask import mask_tokens_

LARGEST = np.finfo(np.float32).max
"""What a penalty makes of a logit is at most this: 10 / 1e-38 would be infinite, and then no draw is defined."""


def apply_treatment(logits: Float32, logits_row: Int64, rows: SamplingRows) -> Callable[[], None]:
    """Apply the treatment of all rows but their masks to logits [L, V], in place.

    Args:
        logits_row: [R] which of the L each row is drawn from. Rows that share one are treated alike: they are a
            request's sequences, of which nothing has been drawn.

    Returns:
        what puts the model's own values back in the rows whose log probabilities are asked for.
    """
    changes: list[tuple[Float32, Int64, Float32]] = []

    def change(row: Float32, tokens: Int64, own: Float32, to: Float32) -> None:
        changes.append((row, tokens, own))
        row[tokens] = to

    for place, (tokens, added) in {logits_row[row]: bias for row, bias in rows.logit_bias.items()}.items():
        own = logits[place][tokens]
        change(logits[place], tokens, own, own + added)
    for place, tokens in {logits_row[row]: banned for row, banned in rows.banned.items()}.items():
        change(logits[place], tokens, logits[place][tokens], np.full(len(tokens), -np.inf, np.float32))
    for place, counted in {logits_row[row]: found for row, found in rows.penalties.items()}.items():
        own = logits[place][counted.tokens]
        change(logits[place], counted.tokens, own, penalised(own, counted))

    def undo() -> None:
        for own, tokens, values in reversed(changes):
            own[tokens] = values

    return undo


def apply_masks(logits: Float32, rows: SamplingRows) -> None:
    """Write -inf to what the masks of rows forbid in logits [R, V], for those who do not read masks as they draw."""
    if rows.masks is not None and rows.masked is not None:
        mask_tokens_(logits, rows.masked.astype(np.int64), rows.masks)


def penalised(own: Float32, counted: Penalties) -> Float32:
    """Logits [D] of the tokens counted, after penalties."""
    repetition = np.float32(counted.repetition)
    with np.errstate(over="ignore"):
        x = np.where(own > 0, own / repetition, own * repetition)
    x -= np.float32(counted.frequency) * counted.counts + np.float32(counted.presence) * (counted.counts > 0)
    np.minimum(x, LARGEST, out=x)
    return x
