"""Loads a `Source` into packed matrices for the native encoder (`packed.py` does it for the decoder)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from octavo.models.packed import packed_linears, packed_parts, packed_weight, rotary_tables
from octavo.models.packed_file import Packed, Part
from octavo.models.parallel import share_of
from octavo.models.relative_positions import relative_buckets
from octavo.models.source_spec import check_loadable
from octavo.models.spec import ModelSpec
from octavo.source import Source
from octavo_kernels.encoder import Float32, PackedEncoder, PackedEncoderLayer, PackedNorm
from octavo_kernels.linear import PackedWeight


def load_packed_encoder(
    source: Source,
    *,
    dtype: Literal["float32", "bfloat16"],
    quantization: str | None = None,
    max_model_len: int | None = None,
    progress: bool = False,
) -> tuple[ModelSpec, PackedEncoder]:
    """Read an encoder's weights into packed matrices.

    Args:
        source: a Hugging Face directory or a GGUF file of a model with an `EncoderSpec`.
        dtype, quantization, progress: as in `load_packed`.
        max_model_len: tokens of the longest text; None takes the model's own limit.

    Raises:
        ModelError: the checkpoint is damaged, or of a kind that is not supported.
        ConfigError: a quantization that is not supported, or more positions than the model has.
    """
    spec, positions = check_loadable(source, quantization, max_model_len)
    parts = packed_parts(source, share_of(spec), dtype, quantization, progress=progress)
    return spec, _assemble(spec, parts, positions)


def _assemble(spec: ModelSpec, parts: dict[Part, Packed], positions: int) -> PackedEncoder:
    encoder = spec.encoder
    assert encoder is not None
    tables = rotary_tables(spec, parts, positions)
    return PackedEncoder(
        embedding=packed_weight(parts, None, "embedding"),
        positions=_values(parts, None, "position_embedding"),
        types=_values(parts, None, "type_embedding"),
        position_offset=encoder.position_offset,
        embedding_norm=_norm(parts, None, "embedding_norm"),
        final_norm=_norm(parts, None, "final_norm"),
        layers=[_layer(parts, i, tables[spec.layer_rope(i)], spec.windows[i]) for i in range(spec.num_layers)],
        query_heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        activation=spec.activation,
        norm_first=encoder.norm_first,
        layer_norm=spec.layer_norm,
        bias=_bias(spec, parts, positions),
        norm_eps=spec.norm_eps,
        attention_scale=spec.attention_scale,
        embedding_scale=spec.embedding_scale,
        max_tokens=positions,
    )


def _layer(parts: dict[Part, Packed], index: int, rotary: Float32, window: int | None) -> PackedEncoderLayer:
    return PackedEncoderLayer(
        **packed_linears(parts, index),  # type: ignore[arg-type]
        attention_norm=_norm(parts, index, "attention_norm"),
        mlp_norm=_norm(parts, index, "mlp_norm"),
        rotary=rotary,
        reach=None if window is None else window - 1,
    )


def _bias(spec: ModelSpec, parts: dict[Part, Packed], positions: int) -> Float32 | None:
    """Each head's bias by the key's position less the query's, from 1 - positions on."""
    by_bucket = _values(parts, None, "relative_bias")
    if by_bucket is None:
        return None
    assert spec.encoder is not None
    buckets = relative_buckets(spec.encoder, np.arange(1 - positions, positions))
    return np.ascontiguousarray(by_bucket[buckets].T)


def _norm(parts: dict[Part, Packed], layer: int | None, part: str) -> PackedNorm | None:
    weight = _values(parts, layer, part)
    return None if weight is None else PackedNorm(weight, _values(parts, layer, part, "bias"))


def _values(parts: dict[Part, Packed], layer: int | None, part: str, kind: str = "weight") -> Float32 | None:
    """What is stored in float32, if it is there."""
    values = parts.get((layer, part, kind))
    assert not isinstance(values, PackedWeight)
    return values
