"""Paged attention in plain PyTorch, vectorised over the batch.

A step's sequences are cut into tiles of up to `TILE` queries, each with the keys that its queries see. Tiles of like
size (query count and key count within the same power of two) are padded to one shape and computed together, so the
Python work per layer grows with the number of shapes and with the work itself, not with the number of sequences, and
padding at most doubles either side. Where keys lie and who sees whom is worked out once per step and window.

One layer of 9 query and 3 KV heads of 64 in float32, on 1 and 2 threads of a 2-core AMD EPYC (2026-11-22):

    64 decodes, contexts 50 to 1000    9.2 and 4.8 ms    (softmax written out instead of SDPA: 21 and 6.9 ms)
    one prefill chunk of 512           5.4 and 2.9 ms    (6.1 and 3.4 ms)
    512 tokens after 1536              31 and 16 ms      (37 to 50 and 30 to 42 ms)
    plan and PagedBatch.build          under 1 ms, once per step
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.kv_cache import KVScales
from octavo_kernels.paged_attention.batch import PagedBatch

Int64 = npt.NDArray[np.int64]

TILE = 128
MAX_KEYS = 1 << 12

_plans: WeakKeyDictionary[PagedBatch, dict[int | None, Plan]] = WeakKeyDictionary()
"""By step and window: every layer of a step asks for the same ones."""


@dataclass(slots=True)
class Pass:
    """Tiles computed together: n of them, padded to Q queries and L keys.

    Padding repeats a tile's last query and last key, never anything else: what lies behind a sequence's end in its
    block table or its last block may be another's, or NaN.
    """

    queries: Tensor  # [n, Q] flat token indices
    keys: Tensor  # [n * L] cache slots
    bias: Tensor  # [n, 1, Q, L] float32, 0 where the query sees the key and -inf elsewhere
    distance: Tensor  # [n, 1, Q, L] float32, positions from the key to the query


@dataclass(slots=True)
class Plan:
    """The passes of a step, and where each token's result lies in their concatenation."""

    passes: list[Pass]
    order: Tensor  # [T]


@dataclass(slots=True)
class _Tiles:
    """n tiles, each a run of queries of one sequence and the run of keys they see."""

    row: Int64  # [n] sequence
    token: Int64  # [n] first query's flat index
    position: Int64  # [n] first query's position
    num_queries: Int64  # [n]
    key: Int64  # [n] first key's position
    num_keys: Int64  # [n]

    def take(self, index: Int64) -> _Tiles:
        columns = (self.row, self.token, self.position, self.num_queries, self.key, self.num_keys)
        return _Tiles(*(column[index] for column in columns))


def plan_of(batch: PagedBatch, window: int | None) -> Plan:
    """The plan of a step, made when it is first asked for and kept as long as the batch."""
    plans = _plans.setdefault(batch, {})
    if window not in plans:
        plans[window] = make_plan(batch, window)
    return plans[window]


def make_plan(batch: PagedBatch, window: int | None) -> Plan:
    starts, contexts = (x.cpu().numpy().astype(np.int64) for x in (batch.query_start, batch.context_lens))
    tiles = _cut(starts, contexts, window)
    passes, order = [], np.empty(starts[-1], np.int64)
    done = 0
    for group in _group(tiles):
        members = tiles.take(group)
        queries, real = _pad(members.token, members.num_queries)
        order[queries[real]] = done + np.flatnonzero(real)
        done += real.size
        passes.append(_make_pass(members, queries, batch, window))
    return Plan(passes, torch.from_numpy(order).to(batch.positions.device))


def _cut(starts: Int64, contexts: Int64, window: int | None) -> _Tiles:
    lens = np.diff(starts)
    counts = -(-lens // TILE)
    row = np.repeat(np.arange(len(lens)), counts)
    offset = (np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)) * TILE
    num_queries = np.minimum(TILE, lens[row] - offset)
    position = (contexts - lens)[row] + offset
    key = np.zeros_like(position) if window is None else np.maximum(0, position - window + 1)
    return _Tiles(row, starts[row] + offset, position, num_queries, key, position + num_queries - key)


def _group(tiles: _Tiles) -> list[Int64]:
    """Indices of tiles of like size, each group with at most MAX_KEYS padded keys (or one tile)."""
    sizes = np.ceil(np.log2(np.stack((np.maximum(tiles.num_keys, 64), tiles.num_queries)))).astype(np.int64)
    order = np.lexsort((tiles.num_keys, *sizes))
    sizes = sizes[:, order]
    edges = np.flatnonzero((np.diff(sizes) != 0).any(0)) + 1
    groups = []
    for group in np.split(order, edges):
        step = max(1, MAX_KEYS // int(tiles.num_keys[group].max()))
        groups += [group[i : i + step] for i in range(0, len(group), step)]
    return groups


def _pad(first: Int64, count: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Runs as a matrix [n, longest], the last value repeated, and which entries are real."""
    offset = np.arange(count.max())
    return first[:, None] + np.minimum(offset, count[:, None] - 1), offset < count[:, None]


def _make_pass(tiles: _Tiles, queries: Int64, batch: PagedBatch, window: int | None) -> Pass:
    device, size = batch.positions.device, batch.block_size
    keys, real = (torch.from_numpy(x).to(device) for x in _pad(tiles.key, tiles.num_keys))
    rows, tokens = torch.from_numpy(tiles.row).to(device), torch.from_numpy(queries).to(device)
    blocks = batch.block_tables[rows[:, None], keys // size].long()
    distance = batch.positions[tokens][:, :, None] - keys[:, None, :]
    hidden = (distance < 0) | ~real[:, None, :]
    if window is not None:
        hidden |= distance >= window
    bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
    return Pass(tokens, (blocks * size + keys % size).flatten(), bias[:, None], distance[:, None].float())


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    kv_scales: KVScales | None = None,
) -> Tensor:
    plan = plan_of(batch, window)
    k_scales, v_scales = kv_scales or (None, None)
    caches = (k_cache, k_scales), (v_cache, v_scales)
    done = [_attend(q, *caches, part, scale, softcap, alibi_slopes, sinks) for part in plan.passes]
    return torch.cat(done).index_select(0, plan.order).to(q.dtype)


def _attend(
    q: Tensor,
    k_cache: tuple[Tensor, Tensor | None],
    v_cache: tuple[Tensor, Tensor | None],
    part: Pass,
    scale: float,
    softcap: float | None,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """One pass: [n * Q, Hq, D] float32, padding included. The caches are values, or codes and scales."""
    n, num_queries = part.queries.shape
    heads, dim = q.shape[1:]
    kv_heads = k_cache[0].shape[2]

    def gather(cache: Tensor, scales: Tensor | None) -> Tensor:
        found = cache.flatten(0, 1).index_select(0, part.keys).float()
        if scales is not None:
            found = found * scales.flatten(0, 1).index_select(0, part.keys)[..., None]
        return found.view(n, -1, kv_heads, dim).transpose(1, 2)

    # The query heads of one KV head become rows of one matrix: [n, Hk, G * Q, D] against keys [n, Hk, L, D].
    rows = q.index_select(0, part.queries.flatten()).float().view(n, num_queries, kv_heads, -1, dim)
    rows = rows.permute(0, 2, 3, 1, 4).reshape(n, kv_heads, -1, dim)
    bias = part.bias.repeat(1, 1, heads // kv_heads, 1)
    if alibi_slopes is not None:
        slopes = alibi_slopes.view(kv_heads, -1).repeat_interleave(num_queries, 1)[:, :, None]
        bias = bias - slopes * part.distance.repeat(1, 1, heads // kv_heads, 1)
    keys, values = gather(*k_cache), gather(*v_cache)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=bias, scale=scale)
    else:
        scores = torch.matmul(rows, keys.transpose(2, 3)).mul_(scale)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        out = torch.matmul(_softmax(scores.add_(bias), sinks, num_queries), values)
    out = out.view(n, kv_heads, heads // kv_heads, num_queries, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(n * num_queries, heads, dim)


def _softmax(scores: Tensor, sinks: Tensor | None, num_queries: int) -> Tensor:
    """Weights of scores [n, Hk, G * Q, L], less what a head's sink [Hk * G] takes of them."""
    if sinks is None:
        return scores.softmax(-1)
    kv_heads = scores.shape[1]
    extra = sinks.view(1, kv_heads, -1, 1).repeat_interleave(num_queries, 2).expand(len(scores), -1, -1, 1)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
