"""The decoder: runs any `ModelSpec` over the ops of `octavo_kernels`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo.models import latent
from octavo.models.parallel import Share, TPGroup
from octavo.models.recurrent_spec import DeltaNet, ShortConv, StateSpace
from octavo.models.rope import cos_sin_table, query_scales
from octavo.models.spec import Activation, ModelSpec, Rope
from octavo.models.step_context import StepContext
from octavo.models.weights.layout import LayerWeights, Norm, Weights, keep_one_order
from octavo_kernels.activation import gelu_mul, silu_mul
from octavo_kernels.delta_rule import delta_rule
from octavo_kernels.delta_rule.reference import exactly
from octavo_kernels.moe import route
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.qkv_rope_store import HeadNorms, qkv_rope_store
from octavo_kernels.rms_norm import add_rms_norm, rms_norm
from octavo_kernels.short_conv import short_conv

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
_GATED: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": silu_mul, "gelu_tanh": gelu_mul}
"""Those that families have with a gate, in one kernel; any other may stand in a config."""


def _activation(name: Activation, *, gated: bool) -> Callable[[Tensor], Tensor]:
    plain = _ACTIVATIONS[name]

    def gate(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return plain(gate).mul_(up).to(gate_up.dtype)

    return _GATED.get(name, gate) if gated else plain


class StepDecoder(Protocol):
    """What runs steps: a `Decoder`, or transformers' code (`foreign`). Its members are as there."""

    spec: ModelSpec
    share: Share
    group: TPGroup
    dtype: torch.dtype
    device: torch.device
    num_positions: int
    split_keys: int | None

    def forward(self, token_ids: Tensor, context: StepContext) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Decoder:
    """A model, or one rank's share of it, ready to run: its spec, its weights and its rotary tables.

    Attributes:
        split_keys: for the layouts of its steps (see `PagedBatch`).

    Args:
        share: what to compute.
        weights: with what; they decide type and device.
        num_positions: rows of the rotary tables: the longest sequence that will be run.
        group: the ranks that have the other shares.

    All of them are attributes too.
    """

    def __init__(self, share: Share, weights: Weights, num_positions: int, group: TPGroup) -> None:
        spec = self.spec = share.spec
        self.num_positions = num_positions
        self.share = share
        self.group = group
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        # transformers rounds the scale to the embedding's type before it multiplies; so do we
        self._embedding_scale = torch.tensor(spec.embedding_scale, dtype=self.dtype).item()
        self._activation = _activation(spec.activation, gated=spec.gated)
        self._mixers = {ShortConv: self._short_conv, DeltaNet: self._delta_net, StateSpace: self._state_space}
        self._slopes = torch.tensor(spec.alibi_slopes, device=self.device) if spec.alibi_slopes else None
        scales = query_scales(spec, num_positions)
        self._query_scales = None if scales is None else scales.to(self.device)
        self.split_keys: int | None = None
        ropes = [spec.layer_rope(layer) for layer in range(spec.num_layers)]
        tables: dict[Rope, Tensor] = {
            rope: cos_sin_table(rope, num_positions).to(self.device) for rope in dict.fromkeys(ropes)
        }
        self._rope_tables = [tables[rope] for rope in ropes]

    def keep_one_order(self) -> None:
        """From now on, sum every matrix product in an order that has nothing to do with how many rows there are.

        Attention keeps one order on a GPU where a step's layout has the `split_keys` of this decoder.

        Raises:
            ConfigError: for weights that bitsandbytes multiplies.
        """
        self.split_keys = 512
        keep_one_order(self.weights.linears)
        for layer in self.weights.layers:
            for part in (layer.experts, layer.latent):
                if part is not None:
                    part.one_order = True

    @torch.no_grad()
    def forward(self, token_ids: Tensor, context: StepContext) -> Tensor:
        """Run one step: store its keys and values, return its hidden states.

        Args:
            token_ids: [T] integers.
            context: of the same tokens.

        Returns:
            [T, D] after the final norm.
        """
        weights = self.weights
        residual = self.embed(token_ids, context.layout.positions)
        normed = self._norm(residual, weights.layers[0].attention_norm)
        following = [layer.attention_norm for layer in weights.layers[1:]] + [weights.final_norm]
        for index in range(len(weights.layers)):
            branch, residual = self._branches(index, normed, residual, context)
            normed, residual = self._add_norm(branch, residual, following[index])
        return normed

    @torch.no_grad()
    def layer(self, index: int, residual: Tensor, context: StepContext) -> Tensor:
        """One layer alone: the residual stream [T, D] before it -> after it."""
        normed = self._norm(residual, self.weights.layers[index].attention_norm)
        branch, residual = self._branches(index, normed, residual, context)
        return branch + residual

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] rows of `forward`'s result -> [R, V] float32, V being this rank's part of the vocabulary.

        The head has no context: its rows are not a step's tokens.
        """
        scores = self.weights.lm_head.multiply(hidden).float()
        if self.spec.logit_scale != 1.0:
            scores.mul_(self.spec.logit_scale)
        cap = self.spec.logit_softcap
        return scores if cap is None else scores.div_(cap).tanh_().mul_(cap)

    @torch.no_grad()
    def head(self, residual: Tensor) -> Tensor:
        """The head alone: the residual stream [R, D] after the last layer -> logits as above."""
        return self.logits(self._norm(residual, self.weights.final_norm))

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """[T] integers and their positions -> [T, D]: the residual stream before the first layer."""
        embedded = self.group.all_reduce(self._look_up(token_ids))
        if self._embedding_scale != 1.0:
            embedded.mul_(self._embedding_scale)
        if (table := self.weights.position_embedding) is not None:
            embedded += table[positions + self.spec.position_offset].to(self.dtype)
        return self._norm(embedded, self.weights.embedding_norm)

    def _look_up(self, token_ids: Tensor) -> Tensor:
        """Embeddings of this rank's tokens, zeros for the others'."""
        if self.share.size == 1:
            return F.embedding(token_ids, self.weights.embedding)
        row = token_ids - self.share.vocab.start
        mine = (row >= 0) & (row < len(self.share.vocab))
        return F.embedding(row * mine, self.weights.embedding) * mine[:, None]

    def _branches(self, index: int, normed: Tensor, residual: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
        """Attention and MLP of one layer: the MLP's branch, and the residual that it is yet to be added to."""
        layer = self.weights.layers[index]
        mix = self._attention if layer.conv is None else self._mixers[type(self.spec.recurrence)]
        branch = self._scaled(self._norm(mix(index, layer, normed, context), layer.post_attention_norm))
        if self.spec.parallel:
            normed = normed if layer.mlp_norm is None else self._norm(residual, layer.mlp_norm)
            residual = branch + residual
        else:
            normed, residual = self._add_norm(branch, residual, layer.mlp_norm)
        return self._scaled(self._norm(self._mlp(layer, normed, context), layer.post_mlp_norm)), residual

    def _scaled(self, branch: Tensor) -> Tensor:
        scale = self.spec.residual_scale
        return branch if scale == 1.0 else branch * scale

    def _norm(self, x: Tensor, norm: Norm | None) -> Tensor:
        if norm is None:
            return x
        if self.spec.layer_norm:
            return F.layer_norm(x.float(), norm.weight.shape, norm.weight, norm.bias, self.spec.norm_eps).to(x.dtype)
        return rms_norm(x, norm.weight, self.spec.norm_eps)

    def _add_norm(self, branch: Tensor, residual: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        if self.spec.layer_norm or norm is None:
            residual = branch + residual
            return self._norm(residual, norm), residual
        return add_rms_norm(branch, residual, norm.weight, self.spec.norm_eps)

    def _attention(self, index: int, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        if layer.latent is not None:
            tables = self._rope_tables[index], self._query_scales
            attended = latent.attend(self.spec, layer, x, index, context, *tables)
            return self.group.all_reduce(layer.out(attended, context))
        spec, kv = self.spec, context.kv[index]
        layout = context.layout if context.layouts is None else context.layouts[index]
        (qkv, gate), norms = self._qkv(layer, x, context), None
        if layer.q_norm is not None and layer.k_norm is not None and spec.qk_norm_span == "head":
            norms = HeadNorms(layer.q_norm, layer.k_norm, spec.norm_eps)
        table = self._rope_tables[index] if spec.layer_rope(index).rotary_dim else None
        where = kv.k, kv.v, layout.slots, layout.positions
        q = qkv_rope_store(qkv, *where, cos_sin=table, norms=norms, kv_scales=kv.scales)
        if self._query_scales is not None:
            q = q * self._query_scales[layout.positions, None, None].to(q.dtype)
        attended = paged_attention(
            q,
            kv.k,
            kv.v,
            layout,
            scale=spec.attention_scale,
            window=spec.windows[index],
            softcap=spec.attention_softcap,
            alibi_slopes=self._slopes,
            sinks=layer.sinks,
            kv_scales=kv.scales,
        )
        mixed = attended.flatten(1) if gate is None else attended.flatten(1) * exactly(torch.sigmoid, gate).to(x.dtype)
        return self.group.all_reduce(layer.out(mixed, context))

    def _short_conv(self, index: int, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        assert layer.conv is not None
        assert context.states is not None
        before, after, inner = layer.qkv(x, context).chunk(3, 1)
        where = context.layout.query_start, context.states.layers[index][0], context.states.use
        mixed = short_conv(before * inner, layer.conv.weight, layer.conv.bias, *where)
        return self.group.all_reduce(layer.out(after * mixed, context))

    def _delta_net(self, index: int, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        kind, weights, conv = self.spec.recurrence, layer.delta, layer.conv
        assert isinstance(kind, DeltaNet)
        assert weights is not None
        assert conv is not None
        assert context.states is not None
        starts, use, states = context.layout.query_start, context.states.use, context.states.layers[index]
        sizes = [kind.channels, kind.sizes[2], kind.value_heads, kind.value_heads]
        before, z, b, a = torch.split(layer.qkv(x, context), sizes, 1)
        mixed = short_conv(before.contiguous(), conv.weight, conv.bias, starts, states[0], use)
        mixed = exactly(F.silu, mixed).to(x.dtype)
        q, k, v = torch.split(mixed, list(kind.sizes), 1)
        q, k = (part.reshape(len(x), kind.key_heads, kind.key_dim) for part in (q, k))
        if kind.tiled:
            q, k = (part.repeat(1, kind.value_heads // kind.key_heads, 1) for part in (q, k))
        v = v.reshape(len(x), kind.value_heads, kind.value_dim)
        decay = weights.decay * exactly(F.softplus, a.float() + weights.step)
        beta = exactly(torch.sigmoid, b)
        out = delta_rule(q, k, v, decay, beta, starts, states[1], use)
        normed = rms_norm(out.to(x.dtype).flatten(0, 1), weights.scale, self.spec.norm_eps).view(len(x), -1)
        return self.group.all_reduce(layer.out((normed * exactly(F.silu, z)).to(x.dtype), context))

    def _state_space(self, index: int, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        kind, weights, conv = self.spec.recurrence, layer.delta, layer.conv
        assert isinstance(kind, StateSpace)
        assert weights is not None
        assert weights.skip is not None
        assert conv is not None
        assert context.states is not None
        starts, use, states = context.layout.query_start, context.states.use, context.states.layers[index]
        before, z, dt = torch.split(layer.qkv(x, context), [kind.channels, kind.sizes[0], kind.value_heads], 1)
        mixed = short_conv(before.contiguous(), conv.weight, conv.bias, starts, states[0], use)
        v, k, q = torch.split(exactly(F.silu, mixed).to(x.dtype), list(kind.sizes), 1)
        q, k = (part.reshape(len(x), kind.key_heads, kind.key_dim) for part in (q, k))
        v = v.reshape(len(x), kind.value_heads, kind.value_dim)
        step = exactly(F.softplus, dt.float() + weights.step)
        out = delta_rule(q, k, v, weights.decay * step, step, starts, states[1], use, erase=False)
        gated = (out + weights.skip[:, None] * v.float()).view(len(x), -1) * exactly(F.silu, z)
        groups = gated.to(x.dtype).view(len(x) * kind.key_heads, -1)
        normed = rms_norm(groups, torch.ones_like(weights.scale[: groups.shape[1]]), self.spec.norm_eps)
        return self.group.all_reduce(layer.out((normed.view(len(x), -1) * weights.scale).to(x.dtype), context))

    def _qkv(self, layer: LayerWeights, x: Tensor, context: StepContext) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values in one row, and a gate; those that are normed over all heads are."""
        spec, qkv, gate = self.spec, layer.qkv(x, context), None
        if spec.attention_gate:
            rows = [spec.q_size + 2 * spec.kv_size, spec.q_size]
            qkv, gate = (part.contiguous() for part in torch.split(qkv, rows, 1))
        if spec.qkv_clip is not None:
            qkv = qkv.clamp_(-spec.qkv_clip, spec.qkv_clip)
        if spec.qk_norm_span == "heads" and layer.q_norm is not None and layer.k_norm is not None:
            q, k, v = torch.split(qkv, [spec.q_size, spec.kv_size, spec.kv_size], 1)
            q, k = (rms_norm(part.contiguous(), norm, spec.norm_eps)
                    for part, norm in ((q, layer.q_norm), (k, layer.k_norm)))  # fmt: skip
            qkv = torch.cat([q, k, v], 1)
        return qkv, gate

    def _mlp(self, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        compute = self._dense if layer.experts is None else self._mixture
        return self.group.all_reduce(compute(layer, x, context))

    def _dense(self, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        assert layer.gate_up is not None
        assert layer.down is not None
        return layer.down(self._activation(layer.gate_up(x, context)), context)

    def _mixture(self, layer: LayerWeights, x: Tensor, context: StepContext) -> Tensor:
        spec, experts = self.spec, layer.experts
        assert experts is not None
        scores = experts.router(x, context)
        shares, chosen = route(
            scores,
            spec.experts_per_token,
            normalise=spec.normalise_experts,
            scoring=spec.router_scoring,
            choice_bias=experts.choice_bias,
            groups=(spec.expert_groups, spec.kept_groups),
            scale=spec.expert_scale,
        )
        mixed = experts(x, shares, chosen, context)
        if layer.gate_up is None:
            return mixed
        shared = self._dense(layer, x, context)
        return mixed + (shared if experts.shared_gate is None else experts.shared_gate(x, context).sigmoid() * shared)
