"""Translates GGUF metadata into a Hugging Face config, so that families read both formats.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; missing values get llama.cpp's defaults
(`llama-model.cpp`, `load_hparams`).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from octavo.errors import ModelError
from octavo.model_files import reading
from octavo.models.families.record import Config
from octavo.models.families.table import ARCHITECTURES
from octavo.models.gguf_metadata import Metadata

_REQUIRED = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
_ENCODER_TYPES = {"bert": "bert", "nomic-bert": "nomic_bert"}
_ENCODER_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "layer_norm_eps": "attention.layer_norm_epsilon",
}
_NEUTRAL = {"alpha": (0.0,), "yarn_log_multiplier": (0.0,), "yarn_ext_factor": (1.0, -1.0), "yarn_attn_factor": (1.0,)}
"""Unsupported settings of rope.scaling, and the values at which they have no effect."""


def config_from_gguf(file: Path) -> Config:
    """A config for `spec_from_config`.

    Raises:
        ModelError: a damaged file, an unknown architecture, a missing key, or a setting that is not supported.
    """
    with reading(f"GGUF file {file}"):
        return _config(Metadata(file))


def _config(meta: Metadata) -> Config:
    if meta.architecture in _ENCODER_TYPES:
        return _encoder(meta)
    family = ARCHITECTURES.get(meta.architecture)
    if family is None or family.gguf is None:
        supported = ", ".join(sorted([*ARCHITECTURES, *_ENCODER_TYPES]))
        raise ModelError(f"GGUF architecture {meta.architecture!r} is not supported; supported ones are {supported}")
    config = {name: meta.required(key) for name, key in _REQUIRED.items()}
    config["rms_norm_eps"] = _norm_eps(meta)
    config |= {name: value for name, key in _OPTIONAL.items() if (value := meta.own(key)) is not None}
    config |= _from_tensors(meta) | _tokens(meta)
    config["model_type"] = family.model_type
    config["head_dim"] = _head_dim(meta, config)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("rope_theta", 10_000.0)
    return config | _rope(meta, config) | family.gguf.config(meta, config)


def _encoder(meta: Metadata) -> Config:
    """BERT's config, also for RoBERTa and XLM-R: the converter drops the rows before a text's first position."""
    if meta.own("attention.causal"):
        raise ModelError(f"{meta.architecture}.attention.causal is set, which is not supported in encoders")
    config = {name: meta.required(key) for name, key in _ENCODER_KEYS.items()} | {"position_offset": 0}
    if "token_types.weight" not in meta.tensors:
        config["type_vocab_size"] = 0
    if (theta := meta.own("rope.freq_base")) is not None:
        config["rope_theta"] = theta
    if "cls.output.weight" in meta.tensors:
        config["architectures"] = ["BertForSequenceClassification"]
        labels = meta.own_list("classifier.output_labels")
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    return config | {"model_type": _ENCODER_TYPES[meta.architecture]}


def _norm_eps(meta: Metadata) -> float:
    layer_norm: float | None = meta.own("attention.layer_norm_epsilon")
    return float(meta.required("attention.layer_norm_rms_epsilon") if layer_norm is None else layer_norm)


def is_latent(meta: Metadata) -> bool:
    """Whether its attention is latent: the lengths of keys and values are then its family's to read."""
    return meta.own("attention.kv_lora_rank") is not None


def _head_dim(meta: Metadata, config: Config) -> int:
    if is_latent(meta):
        return int(meta.required("rope.dimension_count"))
    share = config["hidden_size"] // config["num_attention_heads"]
    key, value = (meta.own(f"attention.{kind}_length") or share for kind in ("key", "value"))
    if key != value:
        raise ModelError(f"attention keys of length {key} and values of length {value}: they must be equal")
    return int(key)


def _from_tensors(meta: Metadata) -> Config:
    if "token_embd.weight" not in meta.tensors:
        raise ModelError("the GGUF file holds no token_embd.weight: it is not a whole language model")
    rows, tokens = meta.tensors["token_embd.weight"].shape[0], meta.get("tokenizer.ggml.tokens") or []
    if len(tokens) > rows:
        raise ModelError(f"the GGUF file's tokenizer has {len(tokens)} tokens, and token_embd.weight {rows} rows")
    return {
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in meta.tensors,
        "attention_bias": "blk.0.attn_q.bias" in meta.tensors or "blk.0.attn_qkv.bias" in meta.tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in meta.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in meta.tensors,
    }


def _tokens(meta: Metadata) -> Config:
    ends = [meta.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(token for token in ends if token is not None))
    return {"bos_token_id": meta.get("tokenizer.ggml.bos_token_id"), "eos_token_id": unique}


def _rope(meta: Metadata, config: Config) -> Config:
    head_dim = config["head_dim"]
    rotary_dim = meta.own("rope.dimension_count") or head_dim
    found = {"partial_rotary_factor": rotary_dim / head_dim}
    if _LONG in meta.tensors:
        return found | _long(meta, rotary_dim // 2)
    scaling = _rope_scaling(meta, config)
    if "rope_freqs.weight" in meta.tensors:
        scaling = _with_factors(meta, scaling, rotary_dim)
    return found | ({"rope_scaling": scaling} if scaling else {})


def _rope_scaling(meta: Metadata, config: Config) -> Config:
    """The scaling as a Hugging Face config has it; an empty dict without scaling.

    A factor without a type means linear scaling; old files call it rope.scale_linear; 0 means no scaling.
    """
    for key, neutral in _NEUTRAL.items():
        if key == "yarn_log_multiplier" and is_latent(meta):
            continue
        if (value := meta.own(f"rope.scaling.{key}")) is not None and value not in neutral:
            raise ModelError(f"{meta.architecture}.rope.scaling.{key} {value} is not supported")
    kind, factor = meta.own("rope.scaling.type") or "linear", meta.own("rope.scaling.factor")
    factor = float((meta.own("rope.scale_linear") if factor is None else factor) or 1.0)
    attention = float(meta.own("rope.scaling.attn_factor") or 1.0)
    if attention != 1.0 and kind != "yarn":
        raise ModelError(f"{meta.architecture}.rope.scaling.attn_factor {attention} is supported with type yarn only")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "yarn":
        return _yarn(meta, config, factor, attention)
    # a GGUF file gives the context length after scaling
    return {"rope_type": kind, "factor": factor,
            "original_max_position_embeddings": config["max_position_embeddings"] / factor}  # fmt: skip


def _yarn(meta: Metadata, config: Config, factor: float, attention: float) -> Config:
    named = {
        "original_max_position_embeddings": meta.own("rope.scaling.original_context_length")
        or config["max_position_embeddings"],
        "beta_fast": meta.own("rope.scaling.yarn_beta_fast"),
        "beta_slow": meta.own("rope.scaling.yarn_beta_slow"),
        "attention_factor": None if attention == 1.0 else attention * (1.0 + 0.1 * math.log(max(factor, 1.0))),
    }
    if scale := meta.own("rope.scaling.yarn_log_multiplier"):  # a tenth, of latent attention; llama.cpp knows one scale
        named |= dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * scale, 6))
    return {"rope_type": "yarn", "factor": factor} | {name: value for name, value in named.items() if value is not None}


_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _long(meta: Metadata, count: int) -> Config:
    scaling = {
        "rope_type": "longrope",
        "short_factor": _divisors(meta, _SHORT, count),
        "long_factor": _divisors(meta, _LONG, count),
        "attention_factor": float(meta.own("rope.scaling.attn_factor") or 1.0),
    }
    original = meta.required("rope.scaling.original_context_length")
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


def _divisors(meta: Metadata, name: str, count: int) -> list[float]:
    """One for each frequency.

    Raises:
        ModelError: there are not so many, or they are not positive.
    """
    stored = meta.tensors.get(name)
    if stored is None or (stored.format, stored.shape) != ("F32", (count,)):
        raise ModelError(f"{name} does not hold {count} positive divisors in float32")
    values: list[float] = np.fromfile(stored.file, "<f4", count, offset=stored.offset).tolist()
    if not all(0 < value < math.inf for value in values):
        raise ModelError(f"{name} does not hold {count} positive divisors")
    return values


def _with_factors(meta: Metadata, scaling: Config, rotary_dim: int) -> Config:
    """The file's own divisor for each frequency, multiplied by the factor of linear scaling."""
    if scaling and scaling["rope_type"] != "linear":
        raise ModelError(f"rope_freqs.weight together with rope scaling {scaling['rope_type']!r} is not supported")
    linear = scaling.get("factor", 1.0)
    factors = [linear * value for value in _divisors(meta, "rope_freqs.weight", rotary_dim // 2)]
    return {"rope_type": "factors", "factors": factors}
