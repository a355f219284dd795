"""Cases of paged attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.kv_cache import KVScales
from octavo_kernels.paged_attention import PagedBatch, paged_attention
from octavo_kernels.timing import BLOCK, Bench, Case, noise


def _attention_case(bench: Bench, sequences: int, queries: int, context: int, codes: torch.dtype | None = None) -> Case:
    """`queries` tokens at the end of each context; torch gets K and V contiguous, which a paged cache is not."""
    (heads, kv_heads), dim = bench.size.heads, bench.size.dim
    blocks = -(-context // BLOCK)
    q = noise(bench, sequences * queries, heads, dim)
    k, v = (noise(bench, sequences * blocks, BLOCK, kv_heads, dim) for _ in range(2))
    tables = np.random.default_rng(0).permutation(sequences * blocks).reshape(sequences, blocks)
    layout = np.arange(sequences + 1) * queries, np.full(sequences, context), tables, BLOCK, bench.device
    batch, invariant = PagedBatch.build(*layout), PagedBatch.build(*layout, split_keys=512)
    dense_q = q.view(sequences, queries, heads, dim).transpose(1, 2)
    dense_k, dense_v = (x.view(sequences, -1, kv_heads, dim)[:, :context].transpose(1, 2).contiguous() for x in (k, v))
    mask = torch.ones(queries, context, dtype=torch.bool, device=bench.device).tril(context - queries)
    kind: dict[str, Any] = {"is_causal": True} if queries == context else {} if queries == 1 else {"attn_mask": mask}
    seen = sequences * (queries * context - queries * (queries - 1) // 2)
    scales: KVScales | None = None
    if codes is not None:
        k, v = ((10 * x).to(codes) for x in (k, v))
        tenths = torch.full(k.shape[:3], 0.1, device=bench.device)
        scales = tenths, tenths
    rivals: dict[str, Callable[[], object]] = {
        "torch_sdpa": lambda: F.scaled_dot_product_attention(dense_q, dense_k, dense_v, enable_gqa=True, **kind)
    }
    if bench.device != "cpu":  # where it is free
        rivals["batch_invariant"] = lambda: paged_attention(q, k, v, invariant, scale=dim**-0.5, kv_scales=scales)
    return Case(
        "paged_attention",
        f"{sequences} x {queries} of {context}" + (f", {str(codes).removeprefix('torch.')}" if codes else ""),
        lambda: paged_attention(q, k, v, batch, scale=dim**-0.5, kv_scales=scales),
        2 * q.nbytes + 2 * sequences * context * kv_heads * (dim * k.element_size() + 4 * (codes is not None)),
        4 * seen * heads * dim,
        rivals,
    )


def cases(bench: Bench) -> Iterator[Case]:
    """Decodes, decodes over 8-bit caches, a prompt, and chunks of prompts."""
    for sequences, context in bench.size.decodes:
        yield _attention_case(bench, sequences, 1, context)
    for codes in (torch.int8, torch.float8_e4m3fn):
        yield _attention_case(bench, sequences, 1, context, codes)
    yield _attention_case(bench, 1, bench.size.prefill, bench.size.prefill)
    yield _attention_case(bench, 4, bench.size.prefill // 4, bench.size.prefill // 2)
