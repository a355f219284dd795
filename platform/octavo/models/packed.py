"""Loads a `Source` into packed matrices for the native decoder, from the packed file of an earlier start if there is
one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from octavo.gguf_header import read_directory
from octavo.models.packed_cache import cached
from octavo.models.packed_file import Packed, Part, expert_part
from octavo.models.parallel import Share, share_of
from octavo.models.quantization import parse_rounding
from octavo.models.recurrent_spec import DeltaNet, Recurrence, ShortConv
from octavo.models.source_spec import check_loadable
from octavo.models.spec import Latent, LongScaling, ModelSpec, Rope
from octavo.source import Source
from octavo_kernels.decoder import (
    PackedExpert,
    PackedLatent,
    PackedLayer,
    PackedLinear,
    PackedMixture,
    PackedModel,
    PackedRecurrent,
    PackedRule,
)
from octavo_kernels.linear import FORMATS, PackedWeight
from octavo_kernels.linear.formats import Array

_MATRICES = ("q", "k", "v", "out", "gate", "up", "down")
_FIRST = ("q", "k", "v", "z", "b", "a")
"""Of a recurrent layer, in the order of its `inputs`."""

_NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "post_attention_norm", "post_mlp_norm")

_TABLE_POSITIONS = 1 << 17
"""Most rows of a rotary table in a packed file: 64 MiB for 128 dimensions. Only the rows that are used become
resident."""


def unpackable_formats(source: Source) -> list[str]:
    """The block formats of a GGUF file that cannot be packed; `load_packed` accepts the source if there are none.

    Raises:
        ModelError: the file is damaged.
    """
    if source.kind != "gguf":
        return []
    return sorted({entry.format for entry in read_directory(source.path).values()} - set(FORMATS))


def load_packed(
    source: Source,
    *,
    dtype: Literal["float32", "bfloat16"],
    quantization: str | None = None,
    max_model_len: int | None = None,
    progress: bool = False,
    share: Share | None = None,
) -> tuple[ModelSpec, PackedModel]:
    """Read a model's weights, or one rank's share of them, into packed matrices.

    Args:
        source: a Hugging Face directory or a GGUF file.
        dtype: float32 keeps every stored value; bfloat16 rounds float32 matrices to it.
        quantization: as in `octavo.models.quantization`.
        max_model_len: tokens of the longest sequence; None takes the model's own limit.
        progress: draw a progress bar on stderr while packing.
        share: the part of the model to load; None means all.

    Returns:
        The spec of what was read, and the matrices.

    Raises:
        ModelError: the checkpoint is damaged, or of a kind that is not supported.
        ConfigError: a quantization that is not supported, or more positions than the model has.
    """
    spec, positions = check_loadable(source, quantization, max_model_len)
    share = share or share_of(spec)
    parts = packed_parts(source, share, dtype, quantization, progress=progress)
    return share.spec, _assemble(share.spec, parts, positions, dtype)


def packed_parts(
    source: Source, share: Share, dtype: Literal["float32", "bfloat16"], quantization: str | None, *, progress: bool
) -> dict[Part, Packed]:
    """A model's tensors in packed form, but its head's; as `load_packed`.

    Raises:
        ModelError: the checkpoint is damaged.
    """
    half, rounding = dtype == "bfloat16" and _holds_float32(source), parse_rounding(quantization)

    def pack() -> Iterator[tuple[Part, Packed]]:
        from octavo.models.packing import pack  # imports torch, 2 s, which a start with a packed file saves

        rows = min(share.whole.max_position_embeddings, _TABLE_POSITIONS)
        return pack(source, share, half=half, rounding=rounding, table_positions=rows, progress=progress)

    rank = f"-{share.rank}of{share.size}" if share.size > 1 else ""
    variant = f"{quantization if rounding else 'stored'}{'-half' if half else ''}{rank}"
    return cached(source, pack, variant)


def _holds_float32(source: Source) -> bool:
    """Whether the source may store float32 matrices, which bfloat16 would round; assumed for every directory."""
    if source.kind == "hf":
        return True
    return any(entry.format == "F32" and len(entry.shape) > 1 for entry in read_directory(source.path).values())


def _assemble(spec: ModelSpec, parts: dict[Part, Packed], positions: int, dtype: str) -> PackedModel:
    tables = rotary_tables(spec, parts, positions)
    embedding, table = packed_weight(parts, None, "embedding"), _array(parts, None, "position_embedding", "weight")
    return PackedModel(
        embedding=embedding,
        head=PackedLinear(embedding) if spec.tied_embeddings else _head(parts),
        **_norm(parts, None, "final_norm", spec),
        layers=[_layer(parts, i, tables[spec.layer_rope(i)], spec) for i in range(spec.num_layers)],
        query_heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        activation=spec.activation,
        layer_norm=spec.layer_norm,
        alibi_slopes=np.array(spec.alibi_slopes, np.float32) if spec.alibi_slopes else None,
        norm_eps=spec.norm_eps,
        attention_scale=spec.attention_scale,
        attention_softcap=spec.attention_softcap,
        logit_softcap=spec.logit_softcap,
        # as in transformers, the scale is rounded to the embedding's type before it multiplies
        embedding_scale=spec.embedding_scale if dtype == "float32" else _to_bfloat16(spec.embedding_scale),
        residual_scale=spec.residual_scale,
        logit_scale=spec.logit_scale,
        qkv_clip=spec.qkv_clip,
        parallel=spec.parallel,
        wide_norms=spec.qk_norm_span == "heads",
        positions=None if table is None else table[spec.position_offset :],
        query_scales=_query_scales(spec, positions),
        **(_norm(parts, None, "embedding_norm", spec) if spec.embedding_norm else {}),
    )


def _query_scales(spec: ModelSpec, positions: int) -> Array | None:
    if not spec.query_growth:
        return None
    growth = np.log1p(np.arange(positions) // spec.query_growth_positions)
    return (1 + spec.query_growth * growth).astype(np.float32)


def _head(parts: dict[Part, Packed]) -> PackedLinear:
    return PackedLinear(packed_weight(parts, None, "lm_head"), _array(parts, None, "lm_head", "bias"))


def _array(parts: dict[Part, Packed], layer: int | None, part: str, kind: str) -> Array | None:
    found = parts.get((layer, part, kind))
    assert not isinstance(found, PackedWeight)
    return found


def _layer(parts: dict[Part, Packed], index: int, rotary: Array, spec: ModelSpec) -> PackedLayer:
    linears = packed_linears(parts, index)
    if spec.attention_gate:
        linears["z"] = _packed_linear(parts, index, "q_gate")
    recurrent = None
    if spec.recurrence is not None and index in spec.recurrent:
        named = dict(zip(_FIRST, spec.recurrence.inputs, strict=False))
        linears |= {name: _packed_linear(parts, index, part) for name, part in named.items()}
        linears["out"] = _packed_linear(parts, index, spec.recurrence.output[0])
        recurrent = _recurrent(parts, index, spec.recurrence)
    norms = {name: parts.get((index, name, "weight")) for name in _NORMS}
    if spec.pre_norms:
        norms |= _norm(parts, index, "attention_norm", spec)
        norms |= _norm(parts, index, "attention_norm" if spec.shared_norm else "mlp_norm", spec, "mlp_norm")
    mixture = _mixture(parts, index, spec) if (index, "router", "weight") in parts else None
    sinks = parts.get((index, "sinks", "weight"))
    others: dict[str, Any] = {"rotary": rotary, "window": spec.windows[index], "mixture": mixture, "sinks": sinks}
    if spec.latent is not None:
        first = "q_a" if spec.latent.query_size else "q"
        linears |= {"q": _packed_linear(parts, index, first), "k": _packed_linear(parts, index, "kv_a")}
        others["latent"] = _latent(parts, index, spec.latent)
    return PackedLayer(**linears, **norms, **others, recurrent=recurrent)  # type: ignore[arg-type]


def _recurrent(parts: dict[Part, Packed], layer: int, kind: Recurrence) -> PackedRecurrent:
    taps, rule = _array(parts, layer, "conv", "weight"), None
    assert taps is not None
    if not isinstance(kind, ShortConv):
        sizes = kind.key_heads, kind.value_heads, kind.key_dim, kind.value_dim
        vectors: dict[str, Any] = {name: parts[layer, f"delta_{name}", "weight"] for name in kind.vectors}
        rule = PackedRule(*sizes, kind.tiled, isinstance(kind, DeltaNet), **vectors)
    return PackedRecurrent(np.ascontiguousarray(taps.T), _array(parts, layer, "conv", "bias"), rule)


def _latent(parts: dict[Part, Packed], layer: int, latent: Latent) -> PackedLatent:
    return PackedLatent(
        query_size=latent.query_size,
        content=latent.content,
        value=latent.value,
        q_b=_packed_linear(parts, layer, "q_b"),
        k_b=PackedLinear(packed_weight(parts, layer, "k_b")),
        v_b=PackedLinear(packed_weight(parts, layer, "v_b")),
        q_norm=_array(parts, layer, "q_a_norm", "weight"),
        kv_norm=parts[layer, "kv_a_norm", "weight"],  # type: ignore[arg-type]
        eps=np.array([latent.norm_eps], np.float32),
    )


def _norm(parts: dict[Part, Packed], layer: int | None, part: str, spec: ModelSpec, name: str = "") -> dict[str, Any]:
    """Weight and bias of a norm, by the attributes that hold them."""
    weight = _array(parts, layer, part, "weight") if spec.norm_weights else np.ones(spec.hidden_size, np.float32)
    return {name or part: weight, f"{name or part}_bias": _array(parts, layer, part, "bias")}


def _mixture(parts: dict[Part, Packed], layer: int, spec: ModelSpec) -> PackedMixture:
    router = _packed_linear(parts, layer, "router")
    assert router is not None
    return PackedMixture(
        router=router,
        experts=[_expert(parts, layer, expert) for expert in range(spec.num_experts)],
        experts_per_token=spec.experts_per_token,
        scoring=spec.router_scoring,
        normalise=spec.normalise_experts,
        numbers=np.array([spec.expert_scale, spec.swiglu_limit or 0], np.float32),
        groups=spec.expert_groups,
        kept_groups=spec.kept_groups,
        choice_bias=parts.get((layer, "router", "choice_bias")),  # type: ignore[arg-type]
        shared_gate=_packed_linear(parts, layer, "shared_gate"),
    )


def _expert(parts: dict[Part, Packed], layer: int, expert: int) -> PackedExpert:
    names = (expert_part(f"expert_{part}", expert) for part in ("gate", "up", "down"))
    return PackedExpert(*(_packed_linear(parts, layer, name) for name in names))  # type: ignore[arg-type]


def packed_linears(parts: dict[Part, Packed], layer: int) -> dict[str, PackedLinear | None]:
    """A layer's matrices by their names; None for those that it does not have."""
    return {name: _packed_linear(parts, layer, name) for name in _MATRICES}


def _packed_linear(parts: dict[Part, Packed], layer: int, name: str) -> PackedLinear | None:
    if (layer, name, "weight") not in parts:
        return None
    return PackedLinear(packed_weight(parts, layer, name), parts.get((layer, name, "bias")))  # type: ignore[arg-type]


def packed_weight(parts: dict[Part, Packed], layer: int | None, part: str) -> PackedWeight:
    """A matrix of a layer, or (None) of the whole model."""
    weight = parts[layer, part, "weight"]
    assert isinstance(weight, PackedWeight)
    return weight


def rotary_tables(spec: ModelSpec, parts: dict[Part, Packed], positions: int) -> dict[Rope, Array]:
    """Of each of a model's ropes, for so many positions."""
    return {rope: _table(parts, i, rope, positions) for i, rope in enumerate(spec.ropes)}


def _table(parts: dict[Part, Packed], index: int, rope: Rope, positions: int) -> Array:
    table = parts[index, "rotary", "table"]
    assert not isinstance(table, PackedWeight)
    if positions > len(table) or isinstance(rope.scaling, LongScaling):
        from octavo.models.rope import cos_sin_table

        table = cos_sin_table(rope, positions).numpy()
    return table[:positions]


def _to_bfloat16(value: float) -> float:
    """`value` rounded to bfloat16, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))
