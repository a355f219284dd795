"""What configs of decoders have in common, read into the fields of a `ModelSpec`.

Configs come in two generations: transformers 5 writes `layer_types`; older checkpoints have `sliding_window_pattern` or
`max_window_layers`. Rotary settings are read in `rope_settings.py`.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import ModelError
from octavo.models.families.record import Config, Family, Fields
from octavo.models.families.rope_settings import global_rope, local_rope, max_positions, rotary_settings
from octavo.models.quantization import check_stored
from octavo.models.spec import Activation

DEFAULTS: Config = {
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
"""Of every family, where its own say nothing else."""

_NEVER_NONE = frozenset(DEFAULTS) | {"max_position_embeddings", "vocab_size"}
"""Settings for which null means the same as leaving them out."""

_LARGEST = (
    dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), 10_000)
    | dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_experts", "num_local_experts"), 1 << 20)
    | dict.fromkeys(("sliding_window", "max_position_embeddings", "max_seq_len", "max_trained_positions"), 1 << 31)
    | dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 1 << 20)
    | {"type_vocab_size": 1 << 16}
)
"""Largest accepted values of a config's sizes: a config must not ask for more memory than any real model needs, nor for
positions that the kernels' integers cannot hold."""

_NO_EFFECT: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "alibi": (False, None),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None, 0),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1),
    "final_logit_softcapping": (None, 0),
    "is_causal": (True, None),
    "is_encoder_decoder": (False, None),
    "kv_lora_rank": (None, 0),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "n_routed_experts": (None, 0, 1),
    "no_rope_layers": (None, []),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "parallel_attn": (False, None),
    "partial_rotary_factor": (None, 1),
    "qk_layernorm": (False, None),
    "residual_multiplier": (None, 1),
    "use_bidirectional_attention": (False, None),
    "use_parallel_residual": (False, None),
    "use_qk_norm": (False, None),
}
"""Settings that change what some families compute, and the values with which they do not. A family whose `defaults`
lack one does not read it."""

_WINDOWED = {"layer_types", "max_window_layers", "sliding_window_pattern"}
"""Settings that say which layers have a window."""

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def complete(config: Config, family: Family) -> Config:
    """A config in the words that are read here, with a value for whatever it leaves out.

    Raises:
        ModelError: it says something that is not supported; the message names it.
    """
    given = config | {usual: config[own] for own, usual in family.keys.items() if config.get(own) is not None}
    given = {name: value for name, value in given.items() if value is not None or name not in _NEVER_NONE}
    config = DEFAULTS | family.defaults | {name: given[name] for name in given.keys() - _leftovers(family)}
    config |= family.settings(config)
    _refuse_unsupported(config, family)
    return config


def _leftovers(family: Family) -> set[str]:
    """Settings of windows that a family does not read, and its configs may have of one that they were made of. They are
    passed over, as transformers does. Where windows are always used, no setting says whether."""
    own = family.defaults.keys() & _WINDOWED
    left = _WINDOWED - own - ({"layer_types"} if own else set())
    if "sliding_window" not in family.defaults:
        left.add("sliding_window")
    return left | ({"use_sliding_window"} if family.defaults.get("use_sliding_window") else set())


def decoder_fields(config: Config) -> Fields:
    """What most families make of a complete config: norms first, rotary positions, a gated MLP."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    return {
        "family": config["model_type"],
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "intermediate_size": config["intermediate_size"],
        "max_position_embeddings": max_positions(config),
        "norm_eps": config["rms_norm_eps"],
        "rope": global_rope(config, head_dim),
        "local_rope": local_rope(config, head_dim),
        "windows": windows(config),
        "attention_scale": head_dim**-0.5,
        "tied_embeddings": bool(config["tie_word_embeddings"]),
        "activation": _activation(config),
        "qkv_bias": bool(config["attention_bias"]),
        "out_bias": bool(config.get("attention_out_bias", config["attention_bias"])),
        "mlp_bias": bool(config["mlp_bias"]),
        "bos_token_id": next(iter(token_ids(config.get("bos_token_id"))), None),
        "eos_token_ids": token_ids(config.get("eos_token_id")),
    }


def expert_fields(config: Config) -> Fields:
    """Of a mixture. Where some layers have no experts, `intermediate_size` is theirs."""
    dense = _dense_layers(config)
    return {
        "num_experts": config.get("num_local_experts") or config["num_experts"],
        "experts_per_token": config["num_experts_per_tok"],
        "normalise_experts": bool(config.get("norm_topk_prob", False)),
        "dense_layers": dense,
        "dense_size": config["intermediate_size"] if dense else 0,
    }


def _dense_layers(config: Config) -> tuple[int, ...]:
    """Layers without experts."""
    named, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    first = config.get("first_k_dense_replace") or 0
    return tuple(i for i in range(config["num_hidden_layers"]) if i < first or i in named or (i + 1) % step)


def alibi_slopes(heads: int, steepest: float = 8) -> tuple[float, ...]:
    """Powers of two from 2^(-steepest / n) down to 2^-steepest, n being the next power of two; where that is more than
    the heads, every second one first (Press et al. 2022)."""
    count = 1 << (heads - 1).bit_length()
    slopes = [2 ** (-steepest * (i + 1) / count) for i in range(count)]
    return tuple(slopes if count == heads else (slopes[1::2] + slopes[::2])[:heads])


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


def check_sizes(config: Config) -> None:
    """Raise `ModelError` if a size is larger than in any real model."""
    for key, largest in _LARGEST.items():
        if isinstance(size := config.get(key), int | float) and not 0 <= size <= largest:
            raise ModelError(f"{key} is {size}, which no model has")


def _refuse_unsupported(config: Config, family: Family) -> None:
    check_sizes(config)
    if quantized := quantization_config(config):
        check_stored(quantized)
    foreign = {key: values for key, values in _NO_EFFECT.items() if key not in family.defaults}
    rotary = rotary_settings(config) if "partial_rotary_factor" in foreign else []
    for key, supported in (foreign | dict(family.only)).items():
        for found in [config, *(rotary if key == "partial_rotary_factor" else [])]:
            if key in found and found[key] not in supported:
                kind, value = config["model_type"], repr(found[key])[:80]
                raise ModelError(f"{key} {value} is not supported in models of type {kind!r}, only {supported[0]!r}")


def _activation(config: Config) -> Activation:
    name = config.get("hidden_activation") or config["hidden_act"]
    if name not in _ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not supported; supported ones are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def unwindowed(config: Config) -> tuple[int, ...]:
    """The layers that have no window."""
    return tuple(layer for layer, window in enumerate(windows(config)) if window is None)


def windows(config: Config) -> tuple[int | None, ...]:
    """As in `ModelSpec`."""
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
