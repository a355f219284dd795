"""Sampling in plain PyTorch, vectorised over rows; a row's token depends only on the row.

The order is vLLM's: temperature, min-p, top-k, top-p, draw. Filters are thresholds on the logits, so all ties at a
threshold are kept, in any order of sorting. The draw inverts the cumulative distribution in vocabulary order with one
counter-based uniform number per row.

Random numbers are Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), a pure
function of (seed, position), never of call order. The same seed gives the same token at the same position of a
sequence, independent of the batch, so a stream that moves to another shard continues exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

UInt64 = npt.NDArray[np.uint64]

_CANDIDATES = 1024  # almost always contain the nucleus; a topk of 1024 is 6x cheaper than sorting 49,152
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85  # key increments per round
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def sample(
    logits: Tensor,
    logits_row: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    if logits_row.tolist() != [*range(len(logits))]:
        logits = logits[logits_row]
    columns = temperature, top_k, top_p, min_p, seed, position
    random = [row for row, value in enumerate(temperature.tolist()) if value > 0]
    tokens = _draw(logits, *columns) if len(random) == len(logits) else logits.argmax(-1)
    if 0 < len(random) < len(logits):
        index = torch.tensor(random, device=logits.device)  # a mask would be scanned for each column
        tokens[index] = _draw(logits[index], *(column[index] for column in columns))
    return torch.where(logits.amax(-1).isfinite(), tokens, -1)


def _draw(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor, position: Tensor
) -> Tensor:
    """Tokens [n] of rows whose temperature is above 0."""
    # Temperatures near 0 would overflow to infinities; shifting the maximum to 0 first keeps every value finite.
    x = (logits - logits.amax(-1, keepdim=True)) / temperature[:, None]
    if max(min_p.tolist(), default=0) > 0:
        x = x.masked_fill(x < min_p[:, None].log(), -torch.inf)
    if max(top_k.tolist(), default=0) > 0 or min(top_p.tolist(), default=1) < 1:
        x = x.masked_fill(x < _threshold(x, top_k[:, None], top_p[:, None]), -torch.inf)
    cumulative = x.softmax(-1).cumsum(-1, dtype=torch.float64)
    numbers = uniform(seed.cpu().numpy().view(np.uint64), position.cpu().numpy())
    point = torch.from_numpy(numbers).to(x.device)[:, None]
    found = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True).squeeze(-1)
    return found.clamp(max=x.shape[-1] - 1)  # for rows with NaN, in which all comparisons are false


def _threshold(x: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Per row, the smallest logit [n, 1] that survives top-k and then top-p; it is searched among the largest logits
    first."""
    vocab = x.shape[-1]
    limit = torch.where(top_k > 0, top_k.clamp(max=vocab), vocab)
    size = min(vocab, max(_CANDIDATES, int((limit * (limit < vocab)).max()) + 1))
    threshold, complete = _threshold_among(x, size, limit, top_p)
    return threshold if complete else _threshold_among(x, vocab, limit, top_p)[0]


def _threshold_among(x: Tensor, size: int, limit: Tensor, top_p: Tensor) -> tuple[Tensor, bool]:
    """The same from the `size` largest logits, and whether these sufficed for every row."""
    top = x.topk(size, dim=-1).values
    by_k = top.gather(-1, (limit.clamp(max=size) - 1).to(torch.int64))
    kept = top.masked_fill(top < by_k, -torch.inf)
    # Without top-k, top-p is a share of the whole row's probability, not of the candidates'.
    norm = torch.where(limit < x.shape[-1], kept.logsumexp(-1, keepdim=True), x.logsumexp(-1, keepdim=True))
    mass = (kept - norm).exp().cumsum(-1, dtype=torch.float64)
    inside = (mass - (kept - norm).exp() < top_p) & kept.isfinite()  # the probability before a token is still below p
    count = inside.sum(-1, keepdim=True).clamp(min=1)
    whole = limit >= x.shape[-1]
    # With top-k they hold all of it once the last is below the k-th: ties count for the nucleus too. Of a row with a
    # mask they often hold all that is allowed
    complete = torch.where(whole, mass[:, -1:] >= top_p, top[:, -1:] < by_k) | (top[:, -1:] == -torch.inf)
    enough = size == x.shape[-1] or bool((complete | (top_p >= 1)).all())
    by_p = kept.gather(-1, count - 1)
    return torch.where(top_p < 1, by_p, torch.where(whole, -torch.inf, by_k)), enough


def philox(counter: UInt64, key: UInt64) -> UInt64:
    """Philox4x32-10.

    Args:
        counter: [4, R] 32-bit words in 64-bit lanes.
        key: [2, R] likewise.

    Returns:
        [4, R] random 32-bit words in 64-bit lanes.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return np.stack([c0, c1, c2, c3])


def uniform(seed: UInt64, position: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One uniform number in [0, 1) per row, with 53 random bits.

    Args:
        seed: [R].
        position: [R] index in the sequence of the token that is drawn.
    """
    place = position.astype(np.uint64)
    zero = np.zeros_like(place)
    words = philox(np.stack([place & _LOW, place >> _32, zero, zero]), np.stack([seed & _LOW, seed >> _32]))
    bits: npt.NDArray[np.float64] = ((words[0] << _32 | words[1]) >> np.uint64(11)).astype(np.float64)
    return bits * 2.0**-53
