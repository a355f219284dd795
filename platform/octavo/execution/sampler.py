"""Logits -> tokens, vectorised over rows; a row's token depends on nothing but the row.

The order of treatment is vLLM's: bias and bans, penalties, temperature, min-p, top-k, top-p, draw. Filters are
thresholds on the logits, so ties at the edge are kept whatever order a sort would give them. The draw inverts the
cumulative distribution in vocabulary order with one counter-based uniform number per row.

Log probabilities are those of the model itself (before any treatment), as in vLLM's default and OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octavo.execution.random import uniform
from octavo.step import Int64, LogprobRow, SamplingRows

_LOGIT_ROWS = 256  # prompt positions whose logits exist at once: 256 x 256k x 4 B = 256 MiB for the largest vocabulary
_CANDIDATES = 1024  # a nucleus almost always lies within these; topk of 1024 is 6x cheaper than sorting 49,152


def sample(logits: Tensor, rows: SamplingRows) -> tuple[Int64, dict[int, LogprobRow]]:
    """Draw one token per row.

    Args:
        logits: [R, V] float32, as the model gave them; not changed.
        rows: how to sample each row.

    Returns:
        token ids [R] (-1 where the logits are not finite), and the log probabilities of the rows that asked.
    """
    broken = ~torch.isfinite(logits.amax(-1))
    treated = treat(logits, rows)
    tokens = treated.argmax(-1)
    random = np.flatnonzero(rows.temperature > 0)
    if len(random):
        tokens[torch.from_numpy(random).to(tokens.device)] = _draw(treated, rows, random)
    tokens[broken] = -1
    ids: Int64 = tokens.cpu().numpy()
    return ids, sampled_logprobs(logits, ids, rows.num_logprobs)


def logprob_rows(logits: Tensor, tokens: list[int], counts: list[int]) -> list[LogprobRow]:
    """Log probabilities under `logits` [R, V] of one token per row and of the `counts` likeliest ones beside it."""
    chosen = torch.tensor(tokens, device=logits.device)
    norm = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(-1, chosen[:, None])
    ranks = 1 + (logits > own).sum(-1)
    top = logits.topk(max(1, *counts) if counts else 1, dim=-1)
    own_values = (own - norm).squeeze(-1).tolist()
    top_values, top_ids = (top.values - norm).tolist(), top.indices.tolist()
    return [
        LogprobRow([token, *ids[:k]], [value, *values[:k]], rank)
        for token, value, ids, values, k, rank in zip(
            tokens, own_values, top_ids, top_values, counts, ranks.tolist(), strict=True
        )
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


def sampled_logprobs(logits: Tensor, ids: Int64, counts: np.ndarray) -> dict[int, LogprobRow]:
    wanted = np.flatnonzero((counts >= 0) & (ids >= 0))
    if not len(wanted):
        return {}
    picked = logits[torch.from_numpy(wanted).to(logits.device)]
    result = logprob_rows(picked, ids[wanted].tolist(), counts[wanted].tolist())
    return dict(zip(wanted.tolist(), result, strict=True))


def treat(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Bias, bans and penalties of the rows that have them."""
    if not (rows.logit_bias or rows.banned or rows.penalties):
        return logits
    logits = logits.clone()
    for row, bias in rows.logit_bias.items():
        logits[row, list(bias)] += torch.tensor(list(bias.values()), device=logits.device)
    for row, tokens in rows.banned.items():
        logits[row, tokens] = -torch.inf
    for row, (presence, frequency, repetition, prompt, output) in rows.penalties.items():
        _penalise(logits[row], presence, frequency, repetition, prompt, output)
    return logits


def _penalise(
    row: Tensor, presence: float, frequency: float, repetition: float, prompt: list[int], output: list[int]
) -> None:
    if repetition != 1.0:
        seen = torch.tensor(sorted({*prompt, *output}), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / repetition, values * repetition)
    if output:
        counts = torch.bincount(torch.tensor(output, device=row.device), minlength=len(row))
        row -= frequency * counts + presence * (counts > 0)


def _draw(logits: Tensor, rows: SamplingRows, index: np.ndarray) -> Tensor:
    """Tokens [n] for the rows in `index`, whose temperature is above 0."""

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[index]).to(logits.device)[:, None]

    # Temperatures near 0 would overflow to infinities; shifting the maximum to 0 first keeps every value finite.
    x = logits[torch.from_numpy(index).to(logits.device)]
    x = (x - x.amax(-1, keepdim=True)) / column(rows.temperature)
    if (rows.min_p[index] > 0).any():
        x = x.masked_fill(x < column(rows.min_p).log(), -torch.inf)
    if (rows.top_k[index] > 0).any() or (rows.top_p[index] < 1).any():
        x = x.masked_fill(x < _threshold(x, column(rows.top_k), column(rows.top_p)), -torch.inf)
    cumulative = x.softmax(-1).cumsum(-1, dtype=torch.float64)
    point = torch.from_numpy(uniform(rows.seed[index], rows.position[index])).to(x.device)[:, None]
    return torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True).squeeze(-1)


def _threshold(x: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit [n, 1] that survives top-k and then top-p, per row."""
    vocab = x.shape[-1]
    limit = torch.where(top_k > 0, top_k.clamp(max=vocab), vocab)
    finite_limits = limit[limit < vocab]
    size = min(vocab, max(_CANDIDATES, int(finite_limits.max()) if len(finite_limits) else 0))
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
    enough = bool((~whole | (top_p >= 1) | (mass[:, -1:] >= top_p)).all()) or size == x.shape[-1]
    by_p = kept.gather(-1, count - 1)
    return torch.where(top_p < 1, by_p, torch.where(whole, -torch.inf, by_k)), enough
