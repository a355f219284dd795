"""Latent attention on torch: what `spec.Latent` describes, over a cache of one record per token."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.models.spec import ModelSpec
from octavo.models.step_context import StepContext
from octavo.models.weights.layout import LayerWeights
from octavo_kernels.fixed_linear import fixed_linear
from octavo_kernels.kv_store import kv_store
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.rms_norm import rms_norm
from octavo_kernels.rotary import rotary_


def attend(
    spec: ModelSpec,
    layer: LayerWeights,
    x: Tensor,
    index: int,
    context: StepContext,
    angles: Tensor,
    query_scales: Tensor | None,
) -> Tensor:
    """One layer's attention, up to its output matrix.

    Args:
        x: [T, D] the normed input.
        index: of the layer.
        angles: its rotary table.
        query_scales: as `rope.query_scales`.

    Returns:
        [T, heads * value].
    """
    weights, latent, layout = layer.latent, spec.latent, context.layout
    assert weights is not None
    assert latent is not None
    first = layer.qkv(x, context)
    q, kv = torch.split(first, [first.shape[1] - spec.head_dim, spec.head_dim], 1)
    if weights.q_b is not None and weights.q_norm is not None:
        q = weights.q_b(rms_norm(q.contiguous(), weights.q_norm, latent.norm_eps), context)
    q = q.view(len(x), spec.num_heads, spec.query_head)
    content, rotated = q[..., : latent.content], q[..., latent.content :]
    queries = torch.cat([rotated, by_head(content, weights.k_b, one_order=weights.one_order)], -1)
    normed = rms_norm(kv[:, : latent.size].contiguous(), weights.kv_norm, latent.norm_eps)
    records = torch.cat([kv[:, latent.size :], normed], 1)[:, None]
    rotary_(queries, records, layout.positions, angles)
    if query_scales is not None:
        queries *= query_scales[layout.positions, None, None].to(queries.dtype)
    cache = context.kv[index]
    kv_store(records, records, cache.k, cache.v, layout.slots, cache.scales)
    scale = spec.attention_scale
    sums = paged_attention(queries, cache.k, cache.v, layout, scale=scale, kv_scales=cache.scales)
    return by_head(sums[..., spec.rope.rotary_dim :], weights.v_b, one_order=weights.one_order).flatten(1)


def by_head(x: Tensor, weight: Tensor, *, one_order: bool) -> Tensor:
    """[T, H, k] and every head's matrix, [H n, k] -> [T, H, n].

    Args:
        one_order: of summation, whatever T is.
    """
    heads = weight.view(x.shape[1], -1, x.shape[2])
    if one_order:
        return torch.stack([fixed_linear(x[:, i], head) for i, head in enumerate(heads)], 1)
    return torch.matmul(x.transpose(0, 1), heads.mT).transpose(0, 1)
