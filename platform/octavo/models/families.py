"""Families as data: from a checkpoint's config to a `ModelSpec`. Encoders are in `encoder_families.py`.

A family is a table of defaults for the settings that its config leaves out, and a short function that says how it
differs from Llama. `gguf_config.py` translates GGUF metadata into a Hugging Face config first, so both formats are read
here.

Configs come in two generations: transformers 5 writes `rope_parameters` (for Gemma 3 one per layer type) and
`layer_types`; older checkpoints have `rope_theta`, `rope_scaling`, `rope_local_base_freq` and `sliding_window_pattern`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from octavo.errors import ModelError
from octavo.model_files import reading
from octavo.models.encoder_families import encoder_from_config, encoder_types, is_classifier, is_encoder, num_labels
from octavo.models.encoder_spec import DenseSpec, HeadSpec
from octavo.models.quantization import check_stored
from octavo.models.spec import (
    Activation,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    ModelSpec,
    Rope,
    RopeScaling,
    YarnScaling,
)
from octavo.models.stored_facts import Stored, flags, sizes

Config = dict[str, Any]
"""A `config.json`, or GGUF metadata translated into one."""


def spec_from_config(config: Config, stored: Stored | None = None) -> ModelSpec:
    """The spec of a Hugging Face config.

    Args:
        stored: the tensors it describes, which win over the config where both differ; None uses the config alone.

    Raises:
        ModelError: unknown model type, a setting that is not covered, or one that contradicts the tensors; the
            message names it.
    """
    with reading("the model's config"):
        config = _text_config(config)
        model_type = config.get("model_type")
        if is_encoder(model_type):
            check_sizes(config)
            return encoder_from_config(config, stored)
        if not isinstance(model_type, str) or model_type not in _FAMILIES:
            supported = ", ".join(sorted([*_FAMILIES, *encoder_types(), "gemma3"]))
            raise ModelError(f"models of type {model_type!r} are not supported; supported types are {supported}")
        build, defaults = _FAMILIES[model_type]
        config = _DEFAULTS | defaults | {k: v for k, v in config.items() if v is not None or k not in _NEVER_NONE}
        if stored is not None and model_type != "mpt":
            config |= sizes(config, stored)
        _refuse_unsupported(config)
        spec = build(config)
        if is_classifier(config):
            return _classifier(spec, config, stored)
        return spec if stored is None else replace(spec, **flags(spec, stored))


def _classifier(spec: ModelSpec, config: Config, stored: Stored | None) -> ModelSpec:
    """A decoder with classes of a text in place of logits of a next token."""
    found = None if stored is None else stored.entries.get("score.weight")
    classes = num_labels(config) if found is None else found.shape[0]
    head = HeadSpec((DenseSpec(classes, spec.hidden_size, "score", bias=False),))
    spec = replace(spec, tied_embeddings=True, generates=False, head=head)
    return spec if stored is None else replace(spec, **flags(spec, stored) | {"tied_embeddings": True})


def llama(config: Config, **differences: Any) -> ModelSpec:
    """Llama 2 and 3, SmolLM2; the base of every other family, which passes its `differences`."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    fields: dict[str, Any] = {
        "family": config["model_type"],
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "intermediate_size": config["intermediate_size"],
        "max_position_embeddings": _max_positions(config),
        "norm_eps": config["rms_norm_eps"],
        "rope": _rope(config, _rope_parameters(config, "full_attention"), head_dim),
        "local_rope": _local_rope(config, head_dim),
        "windows": _windows(config),
        "attention_scale": head_dim**-0.5,
        "tied_embeddings": bool(config["tie_word_embeddings"]),
        "activation": _activation(config),
        "qkv_bias": bool(config["attention_bias"]),
        "out_bias": bool(config.get("attention_out_bias", config["attention_bias"])),
        "mlp_bias": bool(config["mlp_bias"]),
        "bos_token_id": next(iter(token_ids(config.get("bos_token_id"))), None),
        "eos_token_ids": token_ids(config.get("eos_token_id")),
    }
    return ModelSpec(**fields | differences)


def mistral(config: Config) -> ModelSpec:
    """Llama with a sliding window on every layer (a default below), and never a bias."""
    return llama(config, qkv_bias=False, out_bias=False, mlp_bias=False)


def qwen2(config: Config) -> ModelSpec:
    """Llama with biases on q, k and v, and windows (when switched on) from layer `max_window_layers` up."""
    return llama(config, qkv_bias=True, out_bias=False, mlp_bias=False)


def qwen3(config: Config) -> ModelSpec:
    """Llama with q/k norms; windows as in Qwen 2."""
    return llama(config, qk_norm=True, mlp_bias=False)


def mixtral(config: Config) -> ModelSpec:
    """Mistral with experts, whose weights are normalised to add up to 1."""
    experts = _experts(config) | {"normalise_experts": True}
    return llama(config, qkv_bias=False, out_bias=False, mlp_bias=False, **experts)


def qwen2_moe(config: Config) -> ModelSpec:
    """Qwen 2 with experts, and a shared expert that every token uses."""
    shared = {"shared_expert_size": config["shared_expert_intermediate_size"]}
    inner = {"intermediate_size": config["moe_intermediate_size"]}
    return llama(
        config, qkv_bias=bool(config["qkv_bias"]), out_bias=False, mlp_bias=False, **_experts(config), **shared, **inner
    )


def qwen3_moe(config: Config) -> ModelSpec:
    """Qwen 3 with experts."""
    inner = {"intermediate_size": config["moe_intermediate_size"]}
    return llama(config, qk_norm=True, mlp_bias=False, **_experts(config), **inner)


def _experts(config: Config) -> dict[str, Any]:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ModelError("only some layers have experts (mlp_only_layers, decoder_sparse_step), which is not supported")
    return {
        "num_experts": config.get("num_local_experts") or config["num_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "normalise_experts": bool(config.get("norm_topk_prob", False)),
    }


def gemma(config: Config, **differences: Any) -> ModelSpec:
    """Llama with scaled embeddings and a tanh GELU."""
    return llama(config, embedding_scale=math.sqrt(config["hidden_size"]), mlp_bias=False, **differences)


def gemma2(config: Config, **differences: Any) -> ModelSpec:
    """Gemma with post norms, soft caps, its own attention scale, and a window on every other layer."""
    return gemma(
        config,
        post_norms=True,
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping") or None,
        logit_softcap=config.get("final_logit_softcapping") or None,
        **differences,
    )


def gemma3(config: Config) -> ModelSpec:
    """Gemma 2 with q/k norms, five layers with a window to one without, and a rope base for each kind."""
    return gemma2(config, qk_norm=True)


def mpt(config: Config) -> ModelSpec:
    """MPT: layer norms without biases, ALiBi, and a plain MLP four times as wide."""
    attention = config.get("attn_config") or {}
    for setting, only in _MPT_ATTENTION.items():
        if attention.get(setting, only) != only:
            raise ModelError(f"attn_config {setting} {attention[setting]!r} is not supported, only {only!r}")
    hidden, heads = config["d_model"], config["n_heads"]
    return ModelSpec(
        family="mpt",
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["n_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=config["max_seq_len"],
        norm_eps=config["layer_norm_epsilon"],
        rope=Rope(1.0, 0),
        windows=(None,) * config["n_layers"],
        attention_scale=attention.get("softmax_scale") or (hidden // heads) ** -0.5,
        tied_embeddings=True,
        activation="gelu",
        layer_norm=True,
        gated=False,
        alibi_slopes=_slopes(heads, attention.get("alibi_bias_max", 8)),
        bos_token_id=next(iter(token_ids(config.get("bos_token_id"))), None),
        eos_token_ids=token_ids(config.get("eos_token_id")),
    )


def _slopes(heads: int, steepest: float) -> tuple[float, ...]:
    """Powers of two from 2^(-steepest / n) down to 2^-steepest, n being the next power of two; where that is more than
    the heads, every second one first."""
    count = 1 << (heads - 1).bit_length()
    slopes = [2 ** (-steepest * (i + 1) / count) for i in range(count)]
    return tuple(slopes if count == heads else (slopes[1::2] + slopes[::2])[:heads])


_DEFAULTS: Config = {
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
_NEVER_NONE = frozenset(_DEFAULTS) | {"max_position_embeddings", "vocab_size", "layer_norm_epsilon"}
"""Keys for which null means the same as leaving them out."""

_LARGEST = (
    dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), 10_000)
    | dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_experts", "num_local_experts"), 1 << 20)
    | dict.fromkeys(("sliding_window", "max_position_embeddings", "max_seq_len", "max_trained_positions"), 1 << 31)
    | {"type_vocab_size": 1 << 16}
)
"""Largest accepted values of a config's sizes: a config must not ask for more memory than any real model needs, nor for
positions that the kernels' integers cannot hold."""

_LLAMA: Config = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MISTRAL: Config = _LLAMA | {
    "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    "use_sliding_window": True, "sliding_window": 4096,
}  # fmt: skip
_MIXTRAL: Config = {
    "sliding_window": None, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "num_local_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
_QWEN2: Config = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
    "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_QWEN2_MOE: Config = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "qkv_bias": True,
}  # fmt: skip
_QWEN3_MOE: Config = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip
_GEMMA: Config = {
    "vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
_GEMMA2: Config = _GEMMA | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "use_sliding_window": True, "sliding_window": 4096,
    "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
_GEMMA3: Config = _GEMMA2 | {
    "vocab_size": 262_208, "max_position_embeddings": 131_072, "sliding_window_pattern": 6, "rope_theta": 1e6,
    "rope_local_base_freq": 10_000.0, "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip

_MPT: Config = {
    "vocab_size": 50_368, "d_model": 2048, "n_layers": 24, "n_heads": 16, "max_seq_len": 2048,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip
_MPT_ATTENTION = {
    "alibi": True,
    "clip_qkv": None,
    "qk_ln": False,
    "prefix_lm": False,
    "attn_type": "multihead_attention",
}

_FAMILIES: dict[str, tuple[Callable[[Config], ModelSpec], Config]] = {
    "llama": (llama, _LLAMA),
    "mistral": (mistral, _MISTRAL),
    "mixtral": (mixtral, _MISTRAL | _MIXTRAL),
    "qwen2": (qwen2, _QWEN2),
    "qwen2_moe": (qwen2_moe, _QWEN2_MOE),
    "qwen3": (qwen3, _QWEN2 | {"head_dim": 128}),
    "qwen3_moe": (qwen3_moe, _QWEN3_MOE),
    "gemma": (gemma, _GEMMA),
    "gemma2": (gemma2, _GEMMA2),
    "gemma3_text": (gemma3, _GEMMA3),
    "mpt": (mpt, _MPT),
}

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def token_ids(value: Any) -> tuple[int, ...]:
    """A config's `eos_token_id`, which may be absent, one id or a list.

    Raises:
        ModelError: it is something else.
    """
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(type(token_id) is not int for token_id in ids):
        raise ModelError(f"a token id is {value!r}, which is neither a token id nor a list of them")
    return ids


def quantization_config(config: Config) -> Config | None:
    """How a checkpoint's matrices are quantised; None where they are not."""
    found: Config | None = config.get("quantization_config") or config.get("compression_config")
    return found


def _text_config(config: Config) -> Config:
    """The config of Gemma 3's text model; settings in the outer config win."""
    text = config.get("text_config")
    if config.get("model_type") != "gemma3" or not isinstance(text, dict):
        return config
    whole = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config")
    return {"model_type": "gemma3_text"} | text | {k: config[k] for k in whole if config.get(k) is not None}


def check_sizes(config: Config) -> None:
    """Raise `ModelError` if a size is larger than in any real model."""
    for key, largest in _LARGEST.items():
        if isinstance(size := config.get(key), int | float) and not 0 <= size <= largest:
            raise ModelError(f"{key} is {size}, which no model has")


def _refuse_unsupported(config: Config) -> None:
    check_sizes(config)
    if quantized := quantization_config(config):
        check_stored(quantized)
    if config.get("use_bidirectional_attention"):
        raise ModelError("use_bidirectional_attention is set, which is not supported in decoders")


def _activation(config: Config) -> Activation:
    name = config.get("hidden_activation") or config["hidden_act"]
    if name == "gelu" and config["model_type"] == "gemma":
        name = "gelu_pytorch_tanh"  # the first Gemma configs say gelu, but their models use the tanh form
    if name not in _ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not supported; supported ones are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _windows(config: Config) -> tuple[int | None, ...]:
    layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if not window or not config["use_sliding_window"]:
        return (None,) * layers
    types = config.get("layer_types") or _layer_types(config, layers)
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"layers of type {', '.join(sorted(unknown))} are not supported")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _layer_types(config: Config, layers: int) -> list[str]:
    pattern, first = config.get("sliding_window_pattern"), config.get("max_window_layers", 0)
    full = [(i + 1) % pattern == 0 if pattern else i < first for i in range(layers)]
    return ["full_attention" if f else "sliding_attention" for f in full]


def _rope_parameters(config: Config, layer_type: str) -> Config:
    """The rotary settings of one layer type, from configs of either generation, as one flat dict."""
    parameters = config.get("rope_parameters") or {}
    if layer_type in parameters or "full_attention" in parameters:
        parameters = parameters.get(layer_type) or {}
    kept = {k: config[k] for k in ("rope_theta", "partial_rotary_factor") if config.get(k) is not None}
    return kept | parameters | (config.get("rope_scaling") or {})


def _local_rope(config: Config, head_dim: int) -> Rope | None:
    per_type = config.get("rope_parameters") or {}
    base = config.get("rope_local_base_freq")
    if base is None and "sliding_attention" not in per_type:
        return None
    local = {"rope_theta": base, "rope_parameters": {"sliding_attention": per_type.get("sliding_attention")}}
    return _rope(config, _rope_parameters(local, "sliding_attention"), head_dim)


def _rope(config: Config, parameters: Config, head_dim: int) -> Rope:
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    return Rope(float(parameters["rope_theta"]), rotary_dim, _rope_scaling(config, parameters))


def _rope_scaling(config: Config, parameters: Config) -> RopeScaling | None:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    match kind:
        # Dynamic NTK scaling changes angles only beyond max_position_embeddings, which no sequence exceeds.
        case "default" | "dynamic":
            return None
        case "linear":
            return LinearScaling(float(parameters["factor"]))
        case "llama3":
            factor, low, high = (float(parameters[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
            return Llama3Scaling(factor, low, high, _original_positions(config, parameters))
        case "yarn":
            return _yarn(config, parameters)
        case "factors":
            return FactorScaling(tuple(parameters["factors"]))
    raise ModelError(f"rope scaling {kind!r} is not supported; supported kinds are linear, llama3, yarn and dynamic")


def _yarn(config: Config, parameters: Config) -> YarnScaling:
    original = _original_positions(config, parameters)
    factor = float(parameters.get("factor") or config["max_position_embeddings"] / original)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def _yarn_attention_factor(parameters: Config, factor: float) -> float:
    """Attention temperature: 0.1 ln(factor) + 1 in the paper, the quotient of two such terms in DeepSeek's variant."""
    if (given := parameters.get("attention_factor")) is not None:
        return float(given)

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return temperature(above) / temperature(below) if above and below else temperature(1.0)


def _original_positions(config: Config, parameters: Config) -> int:
    inner = parameters.get("original_max_position_embeddings")
    return int(config.get("original_max_position_embeddings") or inner or config["max_position_embeddings"])


def _max_positions(config: Config) -> int:
    """The model's context length in tokens. Configs with scaled positions often give the length before scaling. It is
    multiplied by the factor, as in vLLM: for YaRN, and for linear scaling except in Gemma 3."""
    parameters, own = _rope_parameters(config, "full_attention"), int(config["max_position_embeddings"])
    match _rope_scaling(config, parameters):
        case YarnScaling(factor, original):
            return max(own, int(factor * original))
        case LinearScaling(factor) if not config["model_type"].startswith("gemma3"):
            return max(own, int(factor * (parameters.get("original_max_position_embeddings") or own)))
    return own
