"""Log probabilities of sampled and named tokens in numpy, bit for bit those of `octavo.execution.sampler` on a CPU.

Reading a few numbers of a row takes no torch, and no copy of the row: one pass for its norm is the cost.
"""

from __future__ import annotations

import numpy as np

from octavo.step import Float32, Int64, LogprobRow, SamplingRows
from octavo_kernels.log_norm import log_norms


def logprobs_without_alternatives(
    logits: Float32, logits_row: Int64, tokens: Int64, rows: SamplingRows
) -> dict[int, LogprobRow]:
    """Log probabilities of the rows that ask for some, of which none asks for alternatives.

    Args:
        logits: [L, V] the model's own.
        logits_row: [R] which of the L each row was drawn from.
        tokens: [R] what was drawn; -1 where that failed.
    """
    wanted = np.flatnonzero((rows.num_logprobs >= 0) & (tokens >= 0))
    places, drawn = logits_row[wanted], tokens[wanted]
    norms, ranks = log_norms(logits, places, drawn)
    own = (logits[places, drawn] - norms).tolist()
    found = {}
    for i, row in enumerate(wanted.tolist()):
        named = rows.named.get(row)
        if named is None:
            found[row] = LogprobRow([int(drawn[i])], [own[i]], int(ranks[i]))
            continue
        values = (logits[places[i]][named] - norms[i]).tolist()
        found[row] = LogprobRow([int(drawn[i]), *named.tolist()], [own[i], *values], int(ranks[i]), len(named))
    return found
