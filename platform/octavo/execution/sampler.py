"""Logits -> tokens, vectorised over rows; a row's token depends on nothing but the row.

The order of treatment is vLLM's: bias and bans, penalties, temperature, min-p, top-k, top-p, draw. Filters are
thresholds on the logits, so ties at the edge are kept whatever order a sort would give them. The draw inverts the
cumulative distribution in vocabulary order with one counter-based uniform number per row.

Log probabilities are those of the model itself (before any treatment), as in vLLM's default and OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.execution import tensor_treatment, treatment
from octavo.execution.random import uniform
from octavo.execution.transfer import fetch, to_device
from octavo.step import Int64, LogprobRow, SamplingRows
from octavo_kernels.dispatch import use_gpu
from octavo_kernels.sampling import sample_tensors

_LOGIT_ROWS = 256  # prompt positions whose logits exist at once: 256 x 256k x 4 B = 256 MiB for the largest vocabulary
_CANDIDATES = 1024  # a nucleus almost always lies within these; topk of 1024 is 6x cheaper than sorting 49,152


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
    broken = ~torch.isfinite(logits.amax(-1))
    treated = treat(logits, rows, unlisted)
    if treated is not logits:
        broken |= treated.amax(-1) == -torch.inf  # nothing is left to draw
    tokens = (_on_gpu(treated, rows) if use_gpu(treated) else _tokens(treated, rows)).masked_fill(broken, -1)
    return tokens, _begin_fetch(logits, tokens, rows.num_logprobs)


def _begin_fetch(logits: Tensor, tokens: Tensor, counts: np.ndarray) -> Drawn:
    asked = np.flatnonzero(counts >= 0)
    if not len(asked):
        ids_only = fetch(tokens)
        return lambda: (ids_only()[0].astype(np.int64, copy=False), {})
    lines = to_device(asked, logits.device)
    picked = logits if len(asked) == len(logits) else logits[lines]
    wait = fetch(tokens, *_numbers(picked, tokens[lines].clamp(min=0), int(counts.max())))

    def finish() -> tuple[Int64, dict[int, LogprobRow]]:
        ids, *numbers = wait()
        lists = _rows(ids[asked].tolist(), numbers, counts[asked].tolist())
        return ids.astype(np.int64, copy=False), {
            row: entry for row, entry in zip(asked.tolist(), lists, strict=True) if ids[row] >= 0
        }

    return finish


def _on_gpu(logits: Tensor, rows: SamplingRows) -> Tensor:
    """The same by kernels that do not sort."""
    line = np.arange(len(logits))
    integers = np.stack([line, rows.seed.view(np.int64), rows.position, rows.top_k])
    lines, seeds, positions, top_k = to_device(integers, logits.device)
    temperature, top_p, min_p = to_device(np.stack([rows.temperature, rows.top_p, rows.min_p]), logits.device)
    return sample_tensors(logits, lines, temperature, top_k.int(), top_p, min_p, seeds, positions)


def _tokens(logits: Tensor, rows: SamplingRows) -> Tensor:
    tokens = logits.argmax(-1)
    random = np.flatnonzero(rows.temperature > 0)
    if len(random) == len(tokens):
        return _draw(logits, rows, random)
    if len(random):
        tokens[to_device(random, tokens.device)] = _draw(logits, rows, random)
    return tokens


def logprob_rows(logits: Tensor, tokens: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log probabilities under `logits` [R, V] of one token per row and of the `counts` likeliest ones beside it."""
    chosen = to_device(np.array(tokens, np.int64), logits.device)
    return _rows(tokens, fetch(*_numbers(logits, chosen, max(counts, default=0)))(), counts)


def _numbers(logits: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one token per row its log probability and rank [R], and of the likeliest [R, count] the values and ids."""
    norm = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(-1, chosen[:, None])
    ranks = 1 + (logits > own).sum(-1)
    top = logits.topk(min(max(1, count), logits.shape[-1]), dim=-1)
    return (own - norm).squeeze(-1), ranks, top.values - norm, top.indices


def _rows(tokens: list[int], numbers: Sequence[np.ndarray], counts: list[int]) -> list[LogprobRow]:
    own, ranks, values, ids = (column.tolist() for column in numbers)
    return [
        LogprobRow([token, *others[:k]], [value, *tops[:k]], rank)
        for token, value, rank, tops, others, k in zip(tokens, own, ranks, values, ids, counts, strict=True)
    ]


def prompt_logprobs(
    wanted: list[tuple[int, int, int]], logits: Callable[[list[int]], Tensor | None]
) -> list[LogprobRow]:
    """Log probabilities of prompt tokens.

    Args:
        wanted: `StepBatch.prompt_logprobs`.
        logits: flat token indices -> their logits [n, V], or None on a rank that only gives its part of them.
    """
    rows: list[LogprobRow] = []
    for start in range(0, len(wanted), _LOGIT_ROWS):
        places, tokens, counts = map(list, zip(*wanted[start : start + _LOGIT_ROWS], strict=True))
        if (scores := logits(places)) is not None:
            rows += logprob_rows(scores, tokens, counts)
    return rows


def sampled_logprobs(logits: Tensor, line: Int64, ids: Int64, counts: np.ndarray) -> dict[int, LogprobRow]:
    """Log probabilities of the rows that ask; row r was drawn from logits[line[r]]."""
    wanted = np.flatnonzero((counts >= 0) & (ids >= 0))
    if not len(wanted):
        return {}
    picked = logits[to_device(line[wanted], logits.device)]
    result = logprob_rows(picked, ids[wanted].tolist(), counts[wanted].tolist())
    return dict(zip(wanted.tolist(), result, strict=True))


def treat(logits: Tensor, rows: SamplingRows, unlisted: Tensor | None = None) -> Tensor:
    """Bias, bans and penalties of the rows that have them; `unlisted` as for `begin_sample`."""
    if not (rows.logit_bias or rows.banned or rows.penalties):
        return logits
    logits = logits.clone()
    if logits.is_cpu and unlisted is None:
        treatment.treat(logits.numpy(), np.arange(len(logits)), rows)
    else:
        tensor_treatment.treat(logits, rows, unlisted)
    return logits


def _draw(logits: Tensor, rows: SamplingRows, index: np.ndarray) -> Tensor:
    """Tokens [n] for the rows in `index`, whose temperature is above 0."""

    def column(values: np.ndarray) -> Tensor:
        return to_device(values[index], logits.device)[:, None]

    # Temperatures near 0 would overflow to infinities; shifting the maximum to 0 first keeps every value finite.
    x = logits if len(index) == len(logits) else logits[to_device(index, logits.device)]
    x = (x - x.amax(-1, keepdim=True)) / column(rows.temperature)
    if (rows.min_p[index] > 0).any():
        x = x.masked_fill(x < column(rows.min_p).log(), -torch.inf)
    if (rows.top_k[index] > 0).any() or (rows.top_p[index] < 1).any():
        limits = rows.top_k[index]
        size = min(x.shape[-1], max(_CANDIDATES, int(limits[limits < x.shape[-1]].max(initial=0)) + 1))
        x = x.masked_fill(x < _threshold(x, column(rows.top_k), column(rows.top_p), size), -torch.inf)
    cumulative = x.softmax(-1).cumsum(-1, dtype=torch.float64)
    point = to_device(uniform(rows.seed[index], rows.position[index]), x.device)[:, None]
    found = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True).squeeze(-1)
    return found.clamp(max=x.shape[-1] - 1)  # of a broken row, all of whose comparisons are false


def _threshold(x: Tensor, top_k: Tensor, top_p: Tensor, size: int) -> Tensor:
    """The smallest logit [n, 1] that survives top-k and then top-p, per row; looked for among the `size` largest."""
    vocab = x.shape[-1]
    limit = torch.where(top_k > 0, top_k.clamp(max=vocab), vocab)
    threshold, complete = _threshold_among(x, size, limit, top_p)
    return threshold if complete else _threshold_among(x, vocab, limit, top_p)[0]


def _threshold_among(x: Tensor, size: int, limit: Tensor, top_p: Tensor) -> tuple[Tensor, bool]:
    """The same from the `size` largest logits, and whether they were enough for every row."""
    top = x.topk(size, dim=-1).values
    by_k = top.gather(-1, (limit.clamp(max=size) - 1).to(torch.int64))
    kept = top.masked_fill(top < by_k, -torch.inf)
    # Without top-k the nucleus is a share of the whole row, not of the candidates.
    norm = torch.where(limit < x.shape[-1], kept.logsumexp(-1, keepdim=True), x.logsumexp(-1, keepdim=True))
    mass = (kept - norm).exp().cumsum(-1, dtype=torch.float64)
    inside = (mass - (kept - norm).exp() < top_p) & kept.isfinite()  # the mass before a token is still below p
    count = inside.sum(-1, keepdim=True).clamp(min=1)
    whole = limit >= x.shape[-1]
    # With top-k they hold all of it once the last is below the k-th: ties count for the nucleus too
    complete = torch.where(whole, mass[:, -1:] >= top_p, top[:, -1:] < by_k)
    enough = size == x.shape[-1] or bool((complete | (top_p >= 1)).all())
    by_p = kept.gather(-1, count - 1)
    return torch.where(top_p < 1, by_p, torch.where(whole, -torch.inf, by_k)), enough
