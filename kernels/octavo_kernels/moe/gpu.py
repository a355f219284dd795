"""Mixture of experts in Triton: pairs of a token and an expert, sorted by expert, and products over tiles of them.

With T tokens and K experts each there are T K pairs; pair p belongs to token p // K. One launch counts them and lists
them expert by expert, each list filled up to whole tiles, so that a tile has one expert's weights. A product then
gathers its tile's rows and writes them to their own places: results stay in the order of pairs throughout.

The number of tiles that is launched is the largest there can be (every expert may leave one incomplete); those beyond
the last one in use end at once. So nothing is read back by the CPU, and shapes depend on T alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.activation.gpu import silu_mul
from octavo_kernels.linear.gpu import Tile, accumulate, operands, tile_for
from octavo_kernels.linear.quantized import QuantizedWeight
from octavo_kernels.moe.reference import activate

_PAIRS = 1024
"""Looked at in one go while sorting."""


@triton.jit
def _route_kernel(
    scores_ptr, shares_ptr, experts_ptr, count, stride, CHOSEN: tl.constexpr, NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One token: its largest score CHOSEN times, each then taken out."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    scores = tl.load(scores_ptr + token * stride + expert, mask=expert < count, other=float("-inf")).to(tl.float32)
    weights = tl.exp(scores - tl.max(scores, axis=0))
    probabilities = weights / tl.sum(weights, axis=0)
    left = tl.where(expert < count, probabilities, -1.0)
    slot = tl.arange(0, SLOTS)
    shares = tl.zeros([SLOTS], tl.float32)
    chosen = tl.zeros([SLOTS], tl.int32)
    for i in tl.static_range(CHOSEN):
        best = tl.max(left, axis=0)
        first = tl.min(tl.where(left == best, expert, count - 1), axis=0)  # a row of NaN gets the last expert
        shares = tl.where(slot == i, best, shares)
        chosen = tl.where(slot == i, first, chosen)
        left = tl.where(expert == first, -1.0, left)
    if NORMALISE:
        shares = shares / tl.sum(shares, axis=0)
    place = token * CHOSEN + slot
    tl.store(shares_ptr + place, shares, mask=slot < CHOSEN)
    tl.store(experts_ptr + place, chosen, mask=slot < CHOSEN)


@triton.jit(do_not_specialize=["pairs", "tiles"])
def _sort_kernel(
    experts_ptr, sorted_ptr, tile_expert_ptr, pairs, tiles, count,
    TILE: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One expert: where its list begins, its pairs in order, and which tiles are its own; -1 is no pair, no expert."""
    mine = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(0, pairs, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        expert = tl.load(experts_ptr + pair, mask=pair < pairs, other=count)  # one more than there are
        counts += tl.histogram(expert, BINS)
    in_tiles = tl.where(bins < count, (counts + TILE - 1) // TILE, 0)
    first = tl.sum(tl.where(bins < mine, in_tiles, 0), axis=0)
    own = tl.sum(tl.where(bins == mine, in_tiles, 0), axis=0)
    size = tl.sum(tl.where(bins == mine, counts, 0), axis=0)
    # The last expert also marks the tiles behind its own
    end = tl.where(mine == count - 1, tiles, first + own)
    for tile in range(first, end):
        used = tile < first + own
        tl.store(tile_expert_ptr + tile, tl.where(used, mine, -1))
        slot = tile * TILE + tl.arange(0, TILE)
        tl.store(sorted_ptr + slot, tl.full([TILE], -1, tl.int32), mask=slot >= first * TILE + size)
    done = 0
    for start in range(0, pairs, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        is_mine = (tl.load(experts_ptr + pair, mask=pair < pairs, other=count) == mine).to(tl.int32)
        place = first * TILE + done + tl.cumsum(is_mine, axis=0) - 1
        tl.store(sorted_ptr + place, pair, mask=is_mine == 1)
        done += tl.sum(is_mine, axis=0)


@triton.jit
def _grouped_kernel(
    x_ptr, out_ptr, bias_ptr, sorted_ptr, tile_expert_ptr, n, k, x_stride,
    low_ptr, high_ptr, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
    GROUP: tl.constexpr, UNIT: tl.constexpr, ZERO: tl.constexpr,
    LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, FLOAT8: tl.constexpr,
    PAIRS_PER_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tile `program_id(1)` of pairs times BLOCK_N outputs of its expert."""
    tile = tl.program_id(1)
    expert = tl.load(tile_expert_ptr + tile)
    if expert < 0:
        return
    pair = tl.load(sorted_ptr + tile * BLOCK_M + tl.arange(0, BLOCK_M))
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_offset = (tl.maximum(pair, 0) // PAIRS_PER_ROW).to(tl.int64) * x_stride
    row = expert.to(tl.int64) * n + tl.minimum(column, n - 1)
    total = accumulate(
        x_ptr, x_offset, row, 0, k, k,
        low_ptr, high_ptr, scale_ptr, zero_ptr, minimum_ptr, unit_scale_ptr, unit_minimum_ptr,
        GROUP, UNIT, ZERO, LOW_BITS, HIGH_BITS, FLOAT8, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if bias_ptr is not None:
        total += tl.load(bias_ptr + row).to(tl.float32)[None, :]
    place = pair.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out_ptr + place, total, mask=(pair >= 0)[:, None] & (column < n)[None, :])


@triton.jit
def _combine_kernel(y_ptr, shares_ptr, out_ptr, width, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    """One token: its pairs' results times their shares, added in order."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(CHOSEN):
        pair = token * CHOSEN + i
        y = tl.load(y_ptr + pair * width + column, mask=mask, other=0.0).to(tl.float32)
        total += y * tl.load(shares_ptr + pair)
    tl.store(out_ptr + token * width + column, total, mask=mask)


def route(scores: Tensor, num_chosen: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
    tokens, count = scores.shape
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    shares = torch.empty(tokens, num_chosen, dtype=torch.float32, device=scores.device)
    experts = torch.empty(tokens, num_chosen, dtype=torch.int32, device=scores.device)
    _route_kernel[(tokens,)](
        scores, shares, experts, count, scores.stride(0), CHOSEN=num_chosen, NORMALISE=normalise,
        BLOCK=triton.next_power_of_2(count), SLOTS=triton.next_power_of_2(num_chosen), num_warps=1,
    )  # fmt: skip
    return shares, experts


def sort_by_expert(experts: Tensor, num_experts: int, tile: int) -> tuple[Tensor, Tensor]:
    """Pairs expert by expert in whole tiles of `tile`: [tiles tile] pairs (-1: none), [tiles] experts (-1: unused)."""
    pairs = experts.numel()
    tiles = min(pairs, triton.cdiv(pairs, tile) + num_experts)
    listed = torch.empty(tiles * tile, dtype=torch.int32, device=experts.device)
    tile_expert = torch.empty(tiles, dtype=torch.int32, device=experts.device)
    _sort_kernel[(num_experts,)](
        experts, listed, tile_expert, pairs, tiles, num_experts,
        TILE=tile, BINS=max(32, triton.next_power_of_2(num_experts + 1)), BLOCK=_PAIRS,
    )  # fmt: skip
    return listed, tile_expert


def moe(
    x: Tensor,
    shares: Tensor,
    experts: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    num_experts: int,
    *,
    biases: tuple[Tensor, Tensor] | None = None,
    limit: float | None = None,
    batch_invariant: bool = False,
) -> Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    (tokens, width), chosen = x.shape, experts.shape[1]
    # By the mean of an expert's rows: most of a larger tile would be empty
    tile = tile_for(triton.cdiv(tokens * chosen, num_experts), x.dtype, batch_invariant=batch_invariant)
    listed, tile_expert = sort_by_expert(experts.contiguous(), num_experts, tile.m)
    first, last = biases or (None, None)
    gates = _product(x, gate_up, first, listed, tile_expert, num_experts, tile, chosen)
    hidden = silu_mul(gates) if limit is None else activate(gates, limit)
    results = _product(hidden, down, last, listed, tile_expert, num_experts, tile, 1)
    out = torch.empty_like(x)
    block = min(1024, triton.next_power_of_2(width))
    _combine_kernel[(tokens, triton.cdiv(width, block))](
        results, shares.contiguous(), out, width, CHOSEN=chosen, BLOCK=block
    )
    return out


def _product(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    listed: Tensor,
    tile_expert: Tensor,
    num_experts: int,
    tile: Tile,
    pairs_per_row: int,
) -> Tensor:
    """[pairs, n]: row `pair // pairs_per_row` of `x` times its expert's matrix."""
    total, k = weight.shape
    n = total // num_experts
    out = torch.empty(len(x) * pairs_per_row, n, dtype=x.dtype, device=x.device)
    _grouped_kernel[(triton.cdiv(n, tile.n), len(tile_expert))](
        x, out, bias, listed, tile_expert, n, k, x.stride(0), **operands(weight),
        PAIRS_PER_ROW=pairs_per_row, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
