"""Paged attention: the reference against dense attention sequence by sequence, and Triton against the reference."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from octavo_kernels.kv_store.reference import quantize
from octavo_kernels.paged_attention import PagedBatch, paged_attention, reference

# Weights are rounded to the type of the values before they meet; a GPU sums three TF32 products for one of float32.
TOLERANCE = {torch.float32: 2e-5 if torch.cuda.is_available() else 5e-6, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
MASKS = [(None, None), (1, None), (5, None), (33, None), (None, 2.0), (20, 0.5)]  # window, softcap


CODES = [torch.int8, torch.float8_e4m3fn]


def slopes(heads: int, device: str = "cpu") -> torch.Tensor:
    """ALiBi's for a power of two of heads."""
    return 2 ** (-8 * torch.arange(1, heads + 1, device=device) / heads).float()


@dataclass
class Case:
    """A step over a cache in which all slots but the sequences' own hold NaN."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    query_start: npt.NDArray[np.int32]
    context_lens: npt.NDArray[np.int32]
    block_tables: npt.NDArray[np.int32]
    split_keys: int | None = None
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def batch(self) -> PagedBatch:
        layout = self.query_start, self.context_lens, self.block_tables
        return PagedBatch.build(*layout, self.k_cache.shape[1], self.q.device, self.split_keys)

    def coded(self, dtype: torch.dtype) -> Case:
        """The same with a cache of 8-bit codes; unused slots hold what is NaN in their codes or their scales."""
        (k, k_scales), (v, v_scales) = (quantize(cache, dtype) for cache in (self.k_cache, self.v_cache))
        return replace(
            self, k_cache=k, v_cache=v, kv_scales=(k_scales[..., 0].contiguous(), v_scales[..., 0].contiguous())
        )

    def decoded(self) -> Case:
        """The same with the values of codes and scales."""
        assert self.kv_scales is not None
        k, v = (c.float() * s[..., None] for c, s in zip((self.k_cache, self.v_cache), self.kv_scales, strict=True))
        return replace(self, k_cache=k, v_cache=v, q=self.q.float(), kv_scales=None)

    def slots(self, s: int) -> torch.Tensor:
        """Cache slots of sequence s, first token to last, found one by one."""
        size = self.k_cache.shape[1]
        return torch.tensor([self.block_tables[s, p // size] * size + p % size for p in range(self.context_lens[s])])

    def attend(self, attention: Any = paged_attention, **kind: Any) -> torch.Tensor:
        scale, scales = self.q.shape[2] ** -0.5, self.kv_scales
        kind |= {} if scales is None else {"kv_scales": scales}
        return attention(self.q, self.k_cache, self.v_cache, self.batch, scale=scale, **kind)


def make_case(
    sequences: list[tuple[int, int]],
    heads: tuple[int, int] = (9, 3),
    dim: int = 64,
    block: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Case:
    """`sequences` are (tokens in the step, tokens in the cache before it); `heads` of queries and of keys."""
    generator = torch.Generator().manual_seed(seed)
    tokens, before = np.array(sequences, np.int32).T
    needed = -(-(tokens + before) // block)
    ids = torch.randperm(int(needed.sum()) + 3, generator=generator).numpy()
    tables = np.full((len(sequences), needed.max() + 1), 2**30, np.int32)  # a block id that crashes who trusts it
    tables[np.arange(tables.shape[1]) < needed[:, None]] = ids[: needed.sum()]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    shape = (len(ids), block, heads[1], dim)
    case = Case(
        q=noise(tokens.sum(), heads[0], dim) * 2,
        k_cache=torch.full(shape, torch.nan, device=device, dtype=dtype),
        v_cache=torch.full(shape, torch.nan, device=device, dtype=dtype),
        query_start=np.concatenate(([0], np.cumsum(tokens))).astype(np.int32),
        context_lens=tokens + before,
        block_tables=tables,
    )
    for s, length in enumerate(case.context_lens):
        for cache in (case.k_cache, case.v_cache):
            cache.view(-1, heads[1], dim)[case.slots(s).to(device)] = noise(length, heads[1], dim)
    return case


def dense(
    case: Case,
    window: int | None,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The oracle: each sequence by itself, all its scores at once, in float64."""
    out = []
    for s, (start, end) in enumerate(zip(case.query_start[:-1], case.query_start[1:], strict=True)):
        q = case.q[start:end].double()
        k, v = (c.flatten(0, 1)[case.slots(s)].double() for c in (case.k_cache, case.v_cache))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        j = torch.arange(len(k))
        i = j[len(k) - len(q) :, None]
        if alibi_slopes is not None:
            scores -= alibi_slopes.double()[:, None, None] * (i - j)
        hidden = (j > i) | (i - j >= (window or len(k)))
        weights = scores.masked_fill(hidden, -torch.inf).exp()
        total = weights.sum(-1) + (0 if sinks is None else sinks.double().exp()[:, None])
        out.append(torch.einsum("hqk,khd->qhd", weights / total[..., None], v))
    return torch.cat(out)


def assert_is_dense(case: Case, window: int | None, softcap: float | None) -> None:
    actual, expected = case.attend(window=window, softcap=softcap), dense(case, window, softcap)
    tolerance = TOLERANCE[case.q.dtype]
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


SHAPES = {
    "one token": {"sequences": [(1, 0)]},
    "one decode": {"sequences": [(1, 40)]},
    "decodes": {"sequences": [(1, n) for n in (0, 1, 14, 15, 16, 17, 31, 130, 300)]},
    "prefill over tiles": {"sequences": [(300, 0)]},
    "chunks and decodes": {"sequences": [(1, 40), (5, 0), (129, 70), (1, 0), (17, 16)]},
    "one KV head": {"sequences": [(3, 9), (1, 20)], "heads": (7, 1), "dim": 80, "block": 32},
    "no groups": {"sequences": [(3, 9), (1, 20)], "heads": (4, 4), "dim": 96},
    "wide heads": {"sequences": [(3, 30), (1, 20)], "heads": (8, 1), "dim": 256},
    "blocks of 5": {"sequences": [(3, 9), (7, 23)], "heads": (2, 2), "dim": 6, "block": 5},
}
"""Arguments of `make_case`."""


@pytest.mark.parametrize(("window", "softcap"), MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_dense_attention(shape: str, window: int | None, softcap: float | None) -> None:
    assert_is_dense(make_case(**SHAPES[shape]), window, softcap)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_with_slopes_is_dense_attention(shape: str) -> None:
    case = make_case(**SHAPES[shape])
    biases = slopes(case.q.shape[1])
    for window, softcap in ((None, None), (20, 0.5)):
        actual = case.attend(reference.paged_attention, window=window, softcap=softcap, alibi_slopes=biases)
        torch.testing.assert_close(actual.double(), dense(case, window, softcap, biases), atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_with_sinks_is_dense_attention(shape: str) -> None:
    case = make_case(**SHAPES[shape])
    sinks = torch.linspace(-4, 8, case.q.shape[1])
    for window, softcap in ((None, None), (20, 0.5)):
        actual = case.attend(reference.paged_attention, window=window, softcap=softcap, sinks=sinks)
        expected = dense(case, window, softcap, sinks=sinks)
        torch.testing.assert_close(actual.double(), expected, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reference_computes_half_types_in_float32(dtype: torch.dtype) -> None:
    case = make_case([(1, 40), (20, 3)], dtype=dtype)
    exact = dense(case, None, None).to(dtype)
    # Rounded once, at the end: equal but for the few values that lie at the edge between two neighbours.
    assert (case.attend() == exact).float().mean() > 0.99


@pytest.mark.parametrize("window", [None, 7])
def test_sdpa_sees_what_the_explicit_softmax_sees(window: int | None) -> None:
    case = make_case([(1, 40), (150, 3), (1, 0)])
    torch.testing.assert_close(
        case.attend(window=window), case.attend(window=window, softcap=1e5), atol=1e-4, rtol=1e-4
    )


sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=8)
kinds = st.tuples(st.none() | st.integers(1, 60), st.none() | st.floats(0.5, 50))
head_counts = st.sampled_from([(1, 1), (3, 1), (7, 1), (8, 1), (6, 2), (4, 4)])


@given(sequences, kinds, head_counts, st.sampled_from([8, 20]), st.sampled_from([1, 3, 16]), st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_reference_is_dense_attention_on_any_batch(layout, kind, heads, dim, block, seed) -> None:
    assert_is_dense(make_case(layout, heads, dim, block, seed=seed), *kind)


@given(sequences, st.none() | st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_other_sequences_change_nothing_but_rounding(layout: list[tuple[int, int]], window: int | None) -> None:
    case = make_case(layout, (4, 2), 16)
    together = case.attend(window=window)
    for s, (start, end) in enumerate(zip(case.query_start[:-1], case.query_start[1:], strict=True)):
        rows = slice(s, s + 1)
        alone = PagedBatch.build(np.array([0, end - start]), case.context_lens[rows], case.block_tables[rows], 16)
        out = paged_attention(case.q[start:end], case.k_cache, case.v_cache, alone, scale=0.25, window=window)
        torch.testing.assert_close(together[start:end], out, atol=2e-6, rtol=2e-6)


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(0, 3000)), min_size=1, max_size=64))
@settings(deadline=None, max_examples=50)
def test_plan_bounds_the_passes_and_their_padding(layout: list[tuple[int, int]]) -> None:
    tokens, before = np.array(layout).T
    tables = np.zeros((len(layout), 3600 // 16), np.int32)
    batch = PagedBatch.build(np.append(0, np.cumsum(tokens)), tokens + before, tables, 16)
    plan = reference.make_plan(batch, None)

    seen = [(part.bias == 0).sum(-1).flatten() for part in plan.passes]
    assert torch.equal(torch.cat(seen)[plan.order], batch.positions + 1)
    assert sum(part.queries.numel() for part in plan.passes) <= 2 * tokens.sum()
    needed = [(part.bias[:, 0, -1] == 0).sum(-1).clamp(min=64) for part in plan.passes]  # keys of each tile
    padded = sum(part.keys.numel() for part in plan.passes)
    assert padded <= 2 * torch.cat(needed).sum()
    shapes = 8 * 7  # powers of two up to TILE queries, and from 64 to 4096 keys
    assert len(plan.passes) <= shapes + padded // (reference.MAX_KEYS // 2)


def test_plan_is_made_once_per_step_and_window_and_goes_with_the_step() -> None:
    case = make_case([(1, 40), (5, 0)])
    batch = case.batch
    plans = {window: reference.plan_of(batch, window) for window in (None, 7)}
    assert all(reference.plan_of(batch, window) is plan for window, plan in plans.items())
    assert reference.plan_of(case.batch, None) is not plans[None]
    gone = weakref.ref(plans[None].order)
    del plans, batch
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("codes", CODES, ids=str)
def test_reference_reads_codes_as_the_values_they_stand_for(codes: torch.dtype) -> None:
    case = make_case([(1, 40), (20, 3)]).coded(codes)
    torch.testing.assert_close(case.attend(window=7), case.decoded().attend(window=7))


# Triton's interpreter holds bfloat16 as integers, and its tl.dot multiplies those (3.6 to 3.9).
GPU_TYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
GPU_SHAPES: dict[str, dict[str, Any]] = {
    "one token": {"sequences": [(1, 0)], "heads": (1, 1), "dim": 24},
    "decodes": {"sequences": [(1, n) for n in (0, 14, 15, 16, 31, 130, 300)], "heads": (3, 1), "dim": 16},
    "one long decode": {"sequences": [(1, 700)], "heads": (7, 1), "dim": 16},
    "prefill over tiles": {"sequences": [(150, 0)], "heads": (2, 2), "dim": 16},
    "chunks and decodes": {"sequences": [(1, 40), (5, 0), (50, 70), (1, 0), (17, 16)], "heads": (6, 2), "dim": 16},
    "short chunks": {"sequences": [(4, 300), (2, 0), (3, 77)], "heads": (8, 1), "dim": 32},
    "blocks of 17": {"sequences": [(3, 9), (1, 40)], "heads": (4, 4), "dim": 96, "block": 17},
    "wide heads": {"sequences": [(3, 30), (1, 20)], "heads": (8, 1), "dim": 256},
    "more heads than a tile's rows": {"sequences": [(1, 90), (2, 5)], "heads": (24, 1), "dim": 16},
}


def assert_gpu_equals_reference(gpu, case: Case, tolerance: float | None = None, **kind: Any) -> None:
    kernel = gpu("paged_attention").paged_attention
    actual, expected = (case.attend(op, **kind) for op in (kernel, reference.paged_attention))
    close = TOLERANCE[case.q.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual, expected, atol=close, rtol=close)


@pytest.mark.parametrize("split_keys", [None, 128])
@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_gpu_equals_reference(gpu, device: str, shape: str, split_keys: int | None) -> None:
    case = make_case(**GPU_SHAPES[shape], device=device)
    case.split_keys = split_keys
    assert_gpu_equals_reference(gpu, case)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize(
    ("window", "softcap", "dtype"),
    [*((*mask, torch.float32) for mask in MASKS[1:]), *((20, 0.5, dtype) for dtype in GPU_TYPES[1:])],
    ids=str,
)
def test_gpu_masks_as_the_reference(gpu, device: str, window, softcap, slope: bool, dtype: torch.dtype) -> None:
    for heads, split_keys in (((6, 2), None), ((7, 1), 128)):
        case = make_case([(1, 140), (24, 90), (1, 0)], heads, 16, dtype=dtype, device=device)
        case.split_keys = split_keys
        biases = slopes(heads[0], device) if slope else None
        assert_gpu_equals_reference(gpu, case, window=window, softcap=softcap, alibi_slopes=biases)


@pytest.mark.parametrize("shape", ["decodes", "chunks and decodes"])
@pytest.mark.parametrize("split_keys", [None, 128])
def test_gpu_knows_sinks(gpu, device: str, shape: str, split_keys: int | None) -> None:
    case = make_case(**GPU_SHAPES[shape], device=device)
    case.split_keys = split_keys
    assert_gpu_equals_reference(gpu, case, sinks=torch.linspace(-4, 8, case.q.shape[1], device=device))


@pytest.mark.parametrize("dtype", GPU_TYPES[1:], ids=str)
@pytest.mark.parametrize("shape", ["decodes", "chunks and decodes", "wide heads"])
def test_gpu_takes_half_types(gpu, device: str, shape: str, dtype: torch.dtype) -> None:
    assert_gpu_equals_reference(gpu, make_case(**GPU_SHAPES[shape], dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", GPU_TYPES, ids=str)
@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (7, 1), (8, 1)], ids=str)
def test_gpu_reads_codes(gpu, device: str, heads: tuple[int, int], codes: torch.dtype, dtype: torch.dtype) -> None:
    case = make_case([(1, 140), (1, 3), (20, 30)], heads, 24, 32, dtype, device).coded(codes)
    assert_gpu_equals_reference(gpu, case, window=90)


def test_gpu_reads_codes_of_small_values(gpu, device: str) -> None:
    case = make_case([(1, 40), (30, 3)], dtype=torch.float16, device=device)
    case.v_cache *= 2**-12  # a weight times such a scale is nothing in float16
    case = case.coded(torch.int8)
    actual, expected = (case.attend(op) for op in (gpu("paged_attention").paged_attention, reference.paged_attention))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=4e-3)


@given(
    sequences, kinds, head_counts, st.sampled_from([16, 20]), st.sampled_from([16, 17]), st.sampled_from([None, 128])
)
@settings(deadline=None, max_examples=15)
def test_gpu_equals_reference_on_any_batch(gpu, device: str, layout, kind, heads, dim, block, split_keys) -> None:
    case = make_case(layout, heads, dim, block, device=device)
    case.split_keys = split_keys
    window, softcap = kind
    tolerance = TOLERANCE[torch.float32] + 4e-7 * (softcap or 0)  # the kernel's tanh is off by up to 2e-7
    assert_gpu_equals_reference(gpu, case, tolerance, window=window, softcap=softcap)


def one_sequence(case: Case, s: int, start: int, end: int) -> Case:
    """Tokens `start` to `end` (flat) of sequence s as a step by themselves."""
    left = int(case.query_start[s + 1]) - end  # tokens that are not there yet
    context = case.context_lens[s : s + 1] - left
    return replace(
        case,
        q=case.q[start:end],
        query_start=np.array([0, end - start], np.int32),
        context_lens=context,
        block_tables=case.block_tables[s : s + 1],
    )


def assert_only_the_position_matters(gpu, case: Case, cut: int, **kind: Any) -> None:
    """The first sequence's tokens in the whole step, alone in two chunks, and the last of them as a decode."""
    kernel = gpu("paged_attention").paged_attention
    together = case.attend(kernel, **kind)
    start, end = case.query_start[:2]
    middle = min(start + cut, end - 1)
    for first, last in ((start, middle), (middle, end), (end - 1, end)):
        if first < last:
            assert torch.equal(one_sequence(case, 0, first, last).attend(kernel, **kind), together[first:last])


@pytest.mark.parametrize("codes", [None, *CODES], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (7, 1)], ids=str)
def test_gpu_result_depends_on_the_position_alone(gpu, device: str, row_by_row: None, heads, codes) -> None:
    big = device == "cuda"
    layout = [(70, 900), (1, 300), (200, 0)] if big else [(10, 150), (1, 140)]
    dtype = torch.bfloat16 if big else torch.float32
    case = make_case(layout, heads, 128 if big else 16, dtype=dtype, device=device)
    case = replace(case if codes is None else case.coded(codes), split_keys=128)
    assert_only_the_position_matters(gpu, case, 7)
    assert_only_the_position_matters(gpu, case, 1, window=150, softcap=20.0)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 300)), min_size=2, max_size=3),
    st.none() | st.integers(1, 200),
    head_counts,
    st.integers(0, 11),
)
@settings(deadline=None, max_examples=5, phases=[Phase.explicit, Phase.generate])
def test_gpu_result_depends_on_the_position_alone_in_any_batch(
    gpu, device: str, row_by_row: None, layout, window, heads, cut
) -> None:
    case = replace(make_case(layout, heads, 16, device=device), split_keys=128)
    assert_only_the_position_matters(gpu, case, cut, window=window)


def test_gpu_takes_heads_of_a_fused_projection(gpu, device: str) -> None:
    case = make_case([(1, 40), (5, 0)], device=device)
    expected = case.attend(reference.paged_attention)
    case.q = torch.cat((torch.ones_like(case.q), case.q), 1)[:, 9:]
    close = TOLERANCE[torch.float32]
    torch.testing.assert_close(case.attend(gpu("paged_attention").paged_attention), expected, atol=close, rtol=close)


@pytest.mark.parametrize("back_end", ["reference", "gpu"])
def test_reads_nothing_that_lies_before_the_window(gpu, device: str, back_end: str) -> None:
    case = make_case([(1, 40), (5, 30), (1, 3), (20, 25)], device=device)
    attend = (gpu("paged_attention") if back_end == "gpu" else reference).paged_attention
    expected = case.attend(attend, window=9)
    for s, first in enumerate(case.context_lens - np.diff(case.query_start)):
        for cache in (case.k_cache, case.v_cache):
            cache.flatten(0, 1)[case.slots(s)[: max(0, first - 8)].to(device)] = torch.nan
    assert torch.equal(case.attend(attend, window=9), expected)


@given(sequences, st.sampled_from([1, 3, 16]))
@settings(deadline=None)
def test_batch_says_where_every_token_lies(layout: list[tuple[int, int]], block: int) -> None:
    case = make_case(layout, (1, 1), 1, block)
    batch = case.batch
    rows = [range(before, before + tokens) for tokens, before in layout]
    assert batch.positions.tolist() == [position for row in rows for position in row]
    assert torch.equal(batch.slots, torch.cat([case.slots(s)[row.start :] for s, row in enumerate(rows)]))
    assert batch.max_query_len == max(map(len, rows))
    assert batch.max_context_len == max(row.stop for row in rows)
    assert (batch.slots.dtype, batch.block_tables.dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize(
    ("query_start", "context_lens", "block_tables", "message"),
    [
        ([0], [], [[0]], r"query_start must be \[S \+ 1\]"),
        ([0, 1], [4, 4], [[0], [1]], r"query_start must be \[S \+ 1\]"),
        ([1, 2], [4], [[0]], r"query_start must be \[S \+ 1\]"),
        ([0, 1, 1], [4, 4], [[0], [1]], "at least one token"),
        ([0, 5], [4], [[0]], "more tokens in the step than in its context"),
        ([0, 1], [5], [[0]], r"block_tables must be \[1, 2 or more\]"),
        ([0, 1], [4], [[0], [1]], r"block_tables must be \[1, 1 or more\]"),
    ],
)
def test_batch_refuses_contradictions(query_start, context_lens, block_tables, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PagedBatch.build(np.array(query_start), np.array(context_lens, np.int32), np.array(block_tables), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 4, 8)}, r"q must be \[3, Hq, D\]"),
        ({"q": torch.zeros(3, 5, 8)}, "5 query heads do not share 2 KV heads"),
        ({"q": torch.zeros(3, 4, 8).half()}, "k_cache is torch.float32"),
        (
            {"k_cache": torch.zeros(2, 8, 2, 8), "v_cache": torch.zeros(2, 8, 2, 8)},
            "blocks have 8 tokens, the batch's 4",
        ),
        ({"v_cache": torch.zeros(2, 4, 2, 6)}, "caches must both"),
        ({"v_cache": torch.zeros(4, 2, 2, 8).transpose(0, 1)}, "caches must be contiguous"),
        ({"k_cache": torch.zeros(2, 4, 2, 8, dtype=torch.int8)}, "k_cache is torch.int8"),
        ({"kv_scales": (torch.zeros(2, 4, 2),) * 2}, "codes must both be int8 or float8"),
        (
            {name: torch.zeros(2, 4, 2, 8, dtype=torch.int8) for name in ("k_cache", "v_cache")}
            | {"kv_scales": (torch.zeros(2, 4, 1),) * 2},
            r"kv_scales must both be \(2, 4, 2\) float32",
        ),
        ({"window": 0}, "window must be at least 1"),
        ({"softcap": 0.0}, "softcap must be more than 0"),
        ({"alibi_slopes": torch.zeros(3)}, r"alibi_slopes must be \[4\] float32"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    fits = {
        "q": torch.zeros(3, 4, 8),
        "k_cache": torch.zeros(2, 4, 2, 8),
        "v_cache": torch.zeros(2, 4, 2, 8),
        "batch": PagedBatch.build(np.array([0, 3]), np.array([3]), np.array([[1]]), 4),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        paged_attention(**(fits | change))
