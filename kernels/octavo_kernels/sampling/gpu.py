"""Draw tokens from logits in Triton without sorting them: the definition is `reference.py`.

Three launches, whatever each row asks for, and nothing read back. The vocabulary is cut into chunks:

    peaks    per chunk: its largest logit and where
    weights  per chunk: its sum of e^x, and the likely tokens, those worth trying first, where a row has top-k or top-p
    draw     per row: the smallest logit that survives, and the token at which the running sum passes a random point

x = (logit - peak) / temperature is at most 0, so that the bits of -x are an integer that grows as tokens get less
likely. A threshold is found by halving that integer's range: 31 sums over the likely tokens, some hundreds as a rule.
Where they do not suffice (very flat rows, top_k in the thousands) the row's whole vocabulary is listed instead. Ties at
a threshold all stay. Sums are in float64, in the vocabulary's order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096
"""Tokens that one program looks at in one go."""

_LIKELY = tl.constexpr(-12.0)  # x above it hold nearly all of a nucleus: e^-12 of the likeliest
_LEAST_LIKELY = tl.constexpr(0x7F7FFFFF)  # the bits of the largest finite number


@triton.jit
def _scaled(logits_ptr, token, vocab, peak, temperature, min_p):
    """x of some tokens; -inf for those that min-p drops and beyond the vocabulary."""
    logits = tl.load(logits_ptr + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    x = tl.div_rn(logits - peak, temperature)
    lowest = tl.where(min_p > 0, tl.log(tl.maximum(min_p, 1e-38)), float("-inf"))
    return tl.where(x < lowest, float("-inf"), x)


@triton.jit
def _key(x):
    return (0.0 - x).to(tl.int32, bitcast=True)


@triton.jit
def _peaks_kernel(logits_ptr, logits_row_ptr, peak_ptr, place_ptr, vocab, stride, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    base = logits_ptr + tl.load(logits_row_ptr + row).to(tl.int64) * stride
    logits = tl.load(base + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    broken = tl.max((logits != logits).to(tl.int32), axis=0) > 0
    peak = tl.max(logits, axis=0)
    first = tl.min(tl.where(logits == peak, token, vocab), axis=0)
    place = row * tl.num_programs(1) + chunk
    tl.store(peak_ptr + place, tl.where(broken, float("nan"), peak))
    tl.store(place_ptr + place, first)


@triton.jit
def _row_peak(peak_ptr, row, chunks, CHUNKS: tl.constexpr):
    """The largest logit of a row; not finite where the row is broken."""
    chunk = tl.arange(0, CHUNKS)
    peaks = tl.load(peak_ptr + row * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
    broken = tl.max((peaks != peaks).to(tl.int32), axis=0) > 0
    return tl.where(broken, float("nan"), tl.max(peaks, axis=0))


@triton.jit
def _is_broken(peak):
    return (peak != peak) | (tl.abs(peak) == float("inf"))


@triton.jit
def _weights_kernel(
    logits_ptr, logits_row_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    peak_ptr, sum_ptr, count_ptr, likely_ptr, x_ptr, token_ptr,
    vocab, stride, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    row, chunk, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    temperature = tl.load(temperature_ptr + row)
    peak = _row_peak(peak_ptr, row, chunks, CHUNKS)
    if (temperature <= 0) | _is_broken(peak):
        return
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    base = logits_ptr + tl.load(logits_row_ptr + row).to(tl.int64) * stride
    x = _scaled(base, token, vocab, peak, temperature, tl.load(min_p_ptr + row))
    weight = tl.exp(x).to(tl.float64)
    place = row * chunks + chunk
    tl.store(sum_ptr + place, tl.sum(weight, axis=0))
    if (tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1):
        is_likely = (x >= _LIKELY).to(tl.int32)
        slot = row.to(tl.int64) * chunks * CHUNK + chunk * CHUNK + tl.cumsum(is_likely, axis=0) - 1
        tl.store(x_ptr + slot, x, mask=is_likely == 1)
        tl.store(token_ptr + slot, token, mask=is_likely == 1)
        tl.store(count_ptr + place, tl.sum(is_likely, axis=0))
        tl.store(likely_ptr + place, tl.sum(tl.where(is_likely == 1, weight, 0.0), axis=0))


@triton.jit
def _amount(x_ptr, listed, key, BY_COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """How many of the first `listed` x are at least as likely as `key`, or their weight."""
    total = tl.zeros([1], tl.float64)
    for start in range(0, listed, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        x = tl.load(x_ptr + slot, mask=slot < listed, other=float("-inf"))
        amount = tl.full([CHUNK], 1.0, tl.float64) if BY_COUNT else tl.exp(x).to(tl.float64)
        total += tl.sum(tl.where(_key(x) <= key, amount, 0.0), axis=0)
    return tl.sum(total, axis=0)


@triton.jit
def _reach(x_ptr, listed, goal, BY_COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """The smallest key at which the amount reaches `goal`; that of the least likely token where it never does."""
    low, high = 0, _LEAST_LIKELY
    while low < high:
        middle = low + (high - low) // 2
        enough = _amount(x_ptr, listed, middle, BY_COUNT, CHUNK) >= goal
        low, high = tl.where(enough, low, middle + 1), tl.where(enough, middle, high)
    return low


@triton.jit
def _pick(weight, token, running, goal, vocab):
    """The first token at which the running sum passes the goal, or `vocab`; the sum after all; the last with weight."""
    passed = (running + tl.cumsum(weight, axis=0) > goal) & (weight > 0)
    found = tl.min(tl.where(passed, token, vocab), axis=0)
    return found, running + tl.sum(weight, axis=0), tl.max(tl.where(weight > 0, token, -1), axis=0)


@triton.jit
def _join_lists(x_ptr, token_ptr, count_ptr, row, chunks, CHUNK: tl.constexpr):
    """The chunks' lists moved together, in order: lists only move towards the front, behind what was moved before."""
    listed = tl.load(count_ptr + row * chunks)
    for chunk in range(1, chunks):
        count = tl.load(count_ptr + row * chunks + chunk)
        slot = tl.arange(0, CHUNK)
        x = tl.load(x_ptr + chunk * CHUNK + slot, mask=slot < count)
        token = tl.load(token_ptr + chunk * CHUNK + slot, mask=slot < count)
        tl.debug_barrier()
        tl.store(x_ptr + listed + slot, x, mask=slot < count)
        tl.store(token_ptr + listed + slot, token, mask=slot < count)
        listed += count
    tl.debug_barrier()
    return listed


@triton.jit
def _list_all(logits_ptr, x_ptr, token_ptr, vocab, peak, temperature, min_p, CHUNK: tl.constexpr):
    for start in range(0, vocab, CHUNK):
        token = start + tl.arange(0, CHUNK)
        x = _scaled(logits_ptr, token, vocab, peak, temperature, min_p)
        tl.store(x_ptr + token, x, mask=token < vocab)
        tl.store(token_ptr + token, token, mask=token < vocab)
    tl.debug_barrier()


@triton.jit
def _draw_kernel(
    logits_ptr, logits_row_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, position_ptr,
    peak_ptr, place_ptr, sum_ptr, count_ptr, likely_ptr, x_ptr, token_ptr, out_ptr,
    vocab, stride, chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    is_chunk = chunk < chunks
    peak = _row_peak(peak_ptr, row, chunks, CHUNKS)
    if _is_broken(peak):
        tl.store(out_ptr + row, -1)
        return
    temperature = tl.load(temperature_ptr + row)
    if temperature <= 0:
        has_peak = tl.load(peak_ptr + row * chunks + chunk, mask=is_chunk, other=float("-inf")) == peak
        places = tl.load(place_ptr + row * chunks + chunk, mask=is_chunk, other=vocab)
        tl.store(out_ptr + row, tl.min(tl.where(has_peak, places, vocab), axis=0))
        return

    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    sums = tl.load(sum_ptr + row * chunks + chunk, mask=is_chunk, other=0.0)
    total = tl.sum(sums, axis=0)
    base = logits_ptr + tl.load(logits_row_ptr + row).to(tl.int64) * stride
    # Philox4x32-10 with the position as counter and the seed as key: 53 bits of its first two words
    first, second, _, _ = tl.randint4x(tl.load(seed_ptr + row), tl.load(position_ptr + row))
    bits = (first.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | second.to(tl.uint32, bitcast=True).to(tl.uint64)
    point = (bits >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53

    found, last, running = vocab, -1, total * 0.0
    by_count = (top_k > 0) & (top_k < vocab)
    if by_count | (top_p < 1):
        x_ptr += row.to(tl.int64) * chunks * CHUNK
        token_ptr += row.to(tl.int64) * chunks * CHUNK
        likely = tl.sum(tl.load(likely_ptr + row * chunks + chunk, mask=is_chunk, other=0.0), axis=0)
        count = tl.sum(tl.load(count_ptr + row * chunks + chunk, mask=is_chunk, other=0), axis=0)
        enough = tl.where(by_count, count >= top_k, likely >= top_p * total)
        listed = vocab
        if enough:
            listed = _join_lists(x_ptr, token_ptr, count_ptr, row, chunks, CHUNK)
        else:
            _list_all(base, x_ptr, token_ptr, vocab, peak, temperature, min_p, CHUNK)
        key = _LEAST_LIKELY
        if by_count:
            key = _reach(x_ptr, listed, top_k, True, CHUNK)
            total = _amount(x_ptr, listed, key, False, CHUNK)
        if top_p < 1:
            # Below the top k nothing counts: their sum never reaches its goal later than at the k-th
            key = tl.minimum(key, _reach(x_ptr, listed, top_p * total, False, CHUNK))
        total = _amount(x_ptr, listed, key, False, CHUNK)
        start = 0
        while (start < listed) & (found == vocab):
            slot = start + tl.arange(0, CHUNK)
            x = tl.load(x_ptr + slot, mask=slot < listed, other=float("-inf"))
            token = tl.load(token_ptr + slot, mask=slot < listed, other=vocab)
            weight = tl.where(_key(x) <= key, tl.exp(x).to(tl.float64), 0.0)
            found, running, newest = _pick(weight, token, running, point * total, vocab)
            last = tl.maximum(last, newest)
            start += CHUNK
    else:
        ends = tl.cumsum(sums, axis=0)
        last_chunk = tl.max(tl.where(sums > 0, chunk, 0), axis=0)
        mine = tl.min(tl.where((ends > point * total) & is_chunk, chunk, last_chunk), axis=0)
        running = tl.sum(tl.where(chunk < mine, sums, 0.0), axis=0)
        token = mine * CHUNK + tl.arange(0, CHUNK)
        weight = tl.exp(_scaled(base, token, vocab, peak, temperature, min_p)).to(tl.float64)
        found, running, last = _pick(weight, token, running, point * total, vocab)
    tl.store(out_ptr + row, tl.where(found == vocab, last, found))


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
    rows, vocab = len(logits_row), logits.shape[1]
    chunks = triton.cdiv(vocab, CHUNK)

    def room(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=logits.device)

    peaks, places = room(rows, chunks, dtype=torch.float32), room(rows, chunks, dtype=torch.int32)
    sums, likely = room(2, rows, chunks, dtype=torch.float64)
    counts = room(rows, chunks, dtype=torch.int32)
    x, tokens = room(rows, chunks * CHUNK, dtype=torch.float32), room(rows, chunks * CHUNK, dtype=torch.int32)
    out = room(rows, dtype=torch.int64)
    constants = {"CHUNK": CHUNK, "CHUNKS": triton.next_power_of_2(chunks), "num_warps": 8}
    filters = top_k, top_p, min_p
    _peaks_kernel[rows, chunks](logits, logits_row, peaks, places, vocab, logits.stride(0), CHUNK=CHUNK, num_warps=8)
    _weights_kernel[rows, chunks](
        logits, logits_row, temperature, *filters, peaks, sums, counts, likely, x, tokens,
        vocab, logits.stride(0), **constants,
    )  # fmt: skip
    _draw_kernel[rows,](
        logits, logits_row, temperature, *filters, seed, position, peaks, places, sums, counts, likely, x, tokens, out,
        vocab, logits.stride(0), chunks, **constants,
    )  # fmt: skip
    return out
