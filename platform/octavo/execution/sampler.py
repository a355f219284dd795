"""Logits -> tokens and log probabilities, vectorised over rows; what a row gets depends on nothing but the row.

The order of treatment is vLLM's: masks, bias and bans, penalties, then what `octavo_kernels.sampling` does.

Log probabilities are those of the model itself (before any treatment), as in vLLM's default and OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.execution import tensor_treatment, treatment
from octavo.execution.transfer import fetch, to_device
from octavo.step import Int64, LogprobRow, SamplingRows
from octavo_kernels.log_norm import log_norm_tensors
from octavo_kernels.sampling import sample_tensors

_NONE = np.zeros(0, np.int64)

Drawn = Callable[[], tuple[Int64, dict[int, LogprobRow]]]
"""Waits for a step's tokens and log probabilities, as `sample` returns them."""


def sample(logits: Tensor, rows: SamplingRows) -> tuple[Int64, dict[int, LogprobRow]]:
    """Draw one token per row.

    Args:
        logits: [R, V] float32, as the model gave them; not changed.
        rows: how to sample each row.

    Returns:
        token ids [R] (-1 where the logits are not finite), and the log probabilities of the rows that asked.
    """
    return begin_sample(logits, rows)[1]()


def begin_sample(logits: Tensor, rows: SamplingRows, unlisted: Tensor | None = None) -> tuple[Tensor, Drawn]:
    """As `sample`, without waiting for the device where the features in use allow that.

    Args:
        unlisted: [R] the last token of each row's output where `rows.penalties` do not count it, else -1; None: they
            count all.

    Returns:
        token ids [R] on the device, and what waits for both results.
    """
    treated = _treated(logits, rows, unlisted)
    tokens = _tokens(treated, rows)
    if treated is not logits:  # a penalty turns an infinite logit into the largest finite one
        tokens = tokens.masked_fill(~torch.isfinite(logits.amax(-1)), -1)
    return tokens, _begin_fetch(logits, tokens, rows)


def _begin_fetch(logits: Tensor, tokens: Tensor, rows: SamplingRows) -> Drawn:
    counts = rows.num_logprobs
    asked = np.flatnonzero(counts >= 0)
    if not len(asked):
        ids_only = fetch(tokens)
        return lambda: (ids_only()[0].astype(np.int64, copy=False), {})
    places, named = to_device(asked, logits.device), [rows.named.get(row, _NONE) for row in asked.tolist()]
    wait = fetch(tokens, *_numbers(logits, places, tokens[places].clamp(min=0), int(counts.max()), named))

    def finish() -> tuple[Int64, dict[int, LogprobRow]]:
        ids, *numbers = wait()
        lists = _rows(ids[asked].tolist(), numbers, counts[asked].tolist(), named)
        return ids.astype(np.int64, copy=False), {
            row: entry for row, entry in zip(asked.tolist(), lists, strict=True) if ids[row] >= 0
        }

    return finish


def _tokens(logits: Tensor, rows: SamplingRows) -> Tensor:
    seed, each = rows.seed.view(np.int64), np.arange(len(logits))
    if logits.is_cpu:
        columns = (each, rows.temperature, rows.top_k, rows.top_p, rows.min_p, seed, rows.position)
        return sample_tensors(logits, *(torch.from_numpy(column) for column in columns))
    # Two copies to the device, not seven
    logits_row, seeds, positions, top_k = to_device(np.stack([each, seed, rows.position, rows.top_k]), logits.device)
    temperature, top_p, min_p = to_device(np.stack([rows.temperature, rows.top_p, rows.min_p]), logits.device)
    return sample_tensors(logits, logits_row, temperature, top_k.int(), top_p, min_p, seeds, positions)


def logprob_rows(logits: Tensor, tokens: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log probabilities under `logits` [R, V] of one token per row and of the `counts` likeliest ones beside it."""
    named, each = [_NONE] * len(tokens), np.arange(len(tokens))
    where, chosen = (to_device(x, logits.device) for x in (each, np.array(tokens, np.int64)))
    numbers = _numbers(logits, where, chosen, max(counts, default=0), named)
    return _rows(tokens, fetch(*numbers)(), counts, named)


def _numbers(
    logits: Tensor, places: Tensor, chosen: Tensor, count: int, named: Sequence[Int64]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of one token per row its log probability and rank [R], of the likeliest [R, count] the values and ids, and of
    those asked for by name [R, most of a row] the values.

    A row's bits are the same in any company: `log_norm_tensors` sums row by row, and all else is a single operation.
    """
    norms, ranks = log_norm_tensors(logits, places, chosen)
    own = logits[places, chosen] - norms
    width = max(map(len, named), default=0)
    padded = np.zeros((len(named), width), np.int64)
    for row, ids in zip(padded, named, strict=True):
        row[: len(ids)] = ids
    asked = logits[places[:, None], to_device(padded, logits.device)] - norms[:, None]
    if not count:
        return own, ranks, logits.new_empty(len(places), 0), places.new_empty(len(places), 0), asked
    top = logits[places].topk(min(count, logits.shape[-1]), dim=-1)
    return own, ranks, top.values - norms[:, None], top.indices, asked


def _rows(
    tokens: list[int], numbers: Sequence[np.ndarray], counts: list[int], named: Sequence[Int64]
) -> list[LogprobRow]:
    own, ranks, values, ids, asked = (column.tolist() for column in numbers)
    return [
        LogprobRow([token, *others[:k], *names.tolist()], [value, *tops[:k], *more[: len(names)]], rank, len(names))
        for token, value, rank, tops, others, k, names, more in zip(
            tokens, own, ranks, values, ids, counts, named, asked, strict=True
        )
    ]


def _treated(logits: Tensor, rows: SamplingRows, unlisted: Tensor | None = None) -> Tensor:
    """The logits after the treatment of the rows that have one; `unlisted` as for `begin_sample`."""
    if not rows.are_treated:
        return logits
    logits = logits.clone()
    if logits.is_cpu and unlisted is None:
        treatment.apply_masks(logits.numpy(), rows)
        treatment.apply_treatment(logits.numpy(), np.arange(len(logits)), rows)
    else:
        tensor_treatment.apply_treatment(logits, rows, unlisted)
    return logits
