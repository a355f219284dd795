"""Families of encoders: from a checkpoint's config to a `ModelSpec`, and the heads of classifiers.

A family is a table of defaults and a short function that says how it differs from BERT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import ModelError
from octavo.models.encoder_spec import DenseActivation, DenseSpec, EncoderSpec, HeadSpec
from octavo.models.spec import Activation, ModelSpec, Rope
from octavo.models.stored_facts import Stored, encoder_sizes

Config = dict[str, Any]

_CLASSIFIER = "ForSequenceClassification"

_MOST_POSITIONS = 1 << 20
"""Of a text: a table of rotary positions has a row for each, and no pool of blocks bounds it as in decoders."""


def is_encoder(model_type: object) -> bool:
    """Whether a config's `model_type` is one of the families below."""
    return isinstance(model_type, str) and model_type in _FAMILIES


def encoder_types() -> list[str]:
    """Every supported `model_type`."""
    return list(_FAMILIES)


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config says that its model gives a text's classes."""
    return any(str(name).endswith(_CLASSIFIER) for name in config.get("architectures") or [])


def encoder_from_config(config: Config, stored: Stored | None) -> ModelSpec:
    """The spec of an encoder; `stored` as in `spec_from_config`.

    Raises:
        ModelError: a setting that is not supported, or one that contradicts the tensors; the message names it.
    """
    family = _FAMILIES[config["model_type"]]
    config = _DEFAULTS | family.defaults | {key: value for key, value in config.items() if value is not None}
    config |= {ours: config[theirs] for theirs, ours in _OTHER_KEYS.items() if theirs in config}
    config |= {} if stored is None else encoder_sizes(config, stored)
    _refuse_unsupported(config)
    head = _head(family.head, config, stored) if is_classifier(config) else None
    spec = family.build(config, head=head)
    if spec.max_position_embeddings > _MOST_POSITIONS:
        raise ModelError(f"max_position_embeddings is {spec.max_position_embeddings}, which no encoder has")
    return spec


def bert(config: Config, **differences: Any) -> ModelSpec:
    """BERT; the base of every other family, which passes its `differences`."""
    heads, hidden, layers = (config[key] for key in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    if hidden % heads:
        raise ModelError(f"states of {hidden} values cannot be divided among {heads} heads")
    positions, offset = config["max_position_embeddings"], config.get("position_offset", 0)
    fields: dict[str, Any] = {
        "family": config["model_type"],
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": config["intermediate_size"],
        "max_position_embeddings": positions - offset,
        "norm_eps": config["layer_norm_eps"],
        "rope": Rope(1.0, 0),
        "windows": (None,) * layers,
        "attention_scale": (hidden // heads) ** -0.5,
        "tied_embeddings": True,
        "generates": False,
        "activation": _activation(config),
        "layer_norm": True,
        "norm_bias": True,
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "encoder": EncoderSpec(positions=positions, position_offset=offset, token_types=config["type_vocab_size"]),
    }
    return ModelSpec(**fields | differences)


def roberta(config: Config, **differences: Any) -> ModelSpec:
    """BERT, also XLM-R and CamemBERT, whose positions begin after the padding's row."""
    config.setdefault("position_offset", config["pad_token_id"] + 1)
    return bert(config, **differences)


def mpnet(config: Config, **differences: Any) -> ModelSpec:
    """RoBERTa without token types, and with a learned bias of relative positions; its code knows 32 buckets alone."""
    if config["relative_attention_num_buckets"] != 32:
        raise ModelError(f"relative_attention_num_buckets {config['relative_attention_num_buckets']} is not supported")
    offset = config["pad_token_id"] + 1
    positions = {"positions": config["max_position_embeddings"], "position_offset": offset}
    return roberta(config, encoder=EncoderSpec(**positions, buckets=32), **differences)


def nomic_bert(config: Config, **differences: Any) -> ModelSpec:
    """BERT with rotary positions and a gated MLP without biases."""
    theta = _theta(config.get("rope_parameters"), config["rope_theta"])
    biases = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False)
    rope = Rope(theta, config["hidden_size"] // config["num_attention_heads"])
    spec = EncoderSpec(token_types=config["type_vocab_size"])
    return bert(config, rope=rope, gated=True, encoder=spec, **biases, **differences)


def modernbert(config: Config, **differences: Any) -> ModelSpec:
    """Norms first, rotary positions with a base for each kind of layer, windows in most layers, a gated MLP."""
    layers, every = config["num_hidden_layers"], config["global_attn_every_n_layers"]
    types = config.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"layers of type {', '.join(sorted(unknown))} are not supported")
    window = config["local_attention"] // 2 + 1
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    bases = config.get("rope_parameters") or {}
    own: dict[str, Any] = {
        "encoder": EncoderSpec(norm_first=True, first_norm=False),
        "windows": tuple(window if kind == "sliding_attention" else None for kind in types),
        "rope": Rope(_theta(bases.get("full_attention"), config["global_rope_theta"]), head_dim),
        "local_rope": Rope(_theta(bases.get("sliding_attention"), config["local_rope_theta"]), head_dim),
        "gated": True,
        "norm_bias": bool(config["norm_bias"]),
        "qkv_bias": bool(config["attention_bias"]),
        "out_bias": bool(config["attention_bias"]),
        "mlp_bias": bool(config["mlp_bias"]),
    }
    return bert(config, **own | differences)


def _theta(parameters: Config | None, older: float) -> float:
    """A rotary base: transformers 5 has it among `parameters`, 4 in a key of its own."""
    parameters = parameters or {}
    if parameters.get("rope_type", "default") != "default":
        raise ModelError(f"rope scaling {parameters['rope_type']!r} is not supported in encoders")
    return float(parameters.get("rope_theta") or older)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of a classifier: its name, its activation, and the name of its norm."""

    stored: str
    activation: DenseActivation = "identity"
    norm: str | None = None


@dataclass(frozen=True, slots=True)
class _Family:
    build: Callable[..., ModelSpec]
    head: tuple[_Layer, ...]
    defaults: Config


_POOLER = (_Layer("pooler.dense", "tanh"), _Layer("classifier"))
_OUT_PROJ = (_Layer("classifier.dense", "tanh"), _Layer("classifier.out_proj"))
_RELU = (_Layer("pre_classifier", "relu"), _Layer("classifier"))
_NORMED = (_Layer("head.dense", norm="head.norm"), _Layer("classifier"))
_GGUF = (_Layer("cls", "tanh"), _Layer("cls.output"))

_DEFAULTS: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 512, "type_vocab_size": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
_BERT: Config = {"vocab_size": 30_522, "type_vocab_size": 2, "pad_token_id": 0}
_ROBERTA: Config = {"vocab_size": 50_265, "type_vocab_size": 2, "pad_token_id": 1}
_MPNET: Config = {"vocab_size": 30_527, "pad_token_id": 1, "relative_attention_num_buckets": 32}
_NOMIC: Config = {
    "vocab_size": 30_528, "type_vocab_size": 2, "hidden_act": "silu", "rope_theta": 1000.0,
    "max_position_embeddings": 2048,
}  # fmt: skip
_MODERNBERT: Config = {
    "vocab_size": 50_368, "intermediate_size": 1152, "num_hidden_layers": 22, "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5, "norm_bias": False, "attention_bias": False, "mlp_bias": False, "local_attention": 128,
    "global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
    "classifier_bias": False, "classifier_activation": "gelu",
}  # fmt: skip
_OTHER_KEYS = {
    "dim": "hidden_size", "hidden_dim": "intermediate_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "activation": "hidden_act", "hidden_activation": "hidden_act",
    "norm_eps": "layer_norm_eps", "layer_norm_epsilon": "layer_norm_eps", "n_embd": "hidden_size",
    "n_inner": "intermediate_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "activation_function": "hidden_act", "rotary_emb_base": "rope_theta",
    "max_trained_positions": "max_position_embeddings",
}  # fmt: skip
"""What DistilBERT, ModernBERT and nomic's own code call the settings of BERT's config."""

_FAMILIES: dict[str, _Family] = {
    "bert": _Family(bert, _POOLER, _BERT),
    "roberta": _Family(roberta, _OUT_PROJ, _ROBERTA),
    "xlm-roberta": _Family(roberta, _OUT_PROJ, _ROBERTA),
    "camembert": _Family(roberta, _OUT_PROJ, _ROBERTA),
    "mpnet": _Family(mpnet, _OUT_PROJ, _MPNET),
    "distilbert": _Family(bert, _RELU, _BERT | {"type_vocab_size": 0}),
    "nomic_bert": _Family(nomic_bert, _POOLER, _NOMIC),
    "modernbert": _Family(modernbert, _NORMED, _MODERNBERT),
}

_ONLY: dict[str, tuple[object, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "position_embedding_type": ("absolute",),
    "sinusoidal_pos_embds": (False, True),  # a table all the same, and it is stored
    "prenorm": (False,),
    "use_rms_norm": (False, None),
    "rotary_emb_fraction": (1.0, 1),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None,),
    "causal": (False,),
    "parallel_block": (False,),
    "num_experts": (0, 1),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
}
"""Settings that change what a model computes, and the values that are supported."""

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",  # nomic's name
}


def _refuse_unsupported(config: Config) -> None:
    for key, supported in _ONLY.items():
        if key in config and config[key] not in supported:
            raise ModelError(f"{key} {config[key]!r} is not supported in encoders, only {supported[0]!r}")
    if config["model_type"] != "nomic_bert" and (config.get("rope_scaling") or config.get("embedding_size")):
        raise ModelError("rope_scaling and embedding_size are not supported in encoders")
    if config.get("quantization_config"):
        raise ModelError("encoders stored quantised as quantization_config says are not supported; GGUF files are")


def _activation(config: Config) -> Activation:
    if (name := config["hidden_act"]) not in _ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not supported in encoders, only {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _head(layers: tuple[_Layer, ...], config: Config, stored: Stored | None) -> HeadSpec:
    if stored is not None and "cls.output.weight" in stored.entries:
        layers = _GGUF
    *before, last = layers
    hidden, classes = config["hidden_size"], num_labels(config)
    if found := stored and stored.entries.get(f"{last.stored}.weight"):
        classes = found.shape[0]
    dense = [_dense(layer, config, hidden) for layer in before]
    return HeadSpec((*dense, DenseSpec(classes, hidden, last.stored)))


def _dense(layer: _Layer, config: Config, hidden: int) -> DenseSpec:
    if layer.norm is None:
        return DenseSpec(hidden, hidden, layer.stored, activation=layer.activation)
    activation: Any = _activation({"hidden_act": config["classifier_activation"]})
    return DenseSpec(hidden, hidden, layer.stored, bool(config["classifier_bias"]), activation, layer.norm)


def num_labels(config: Mapping[str, Any]) -> int:
    """Classes of a classifier: transformers' default is two."""
    return int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)
