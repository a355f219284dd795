"""MPT: layer norms without biases, ALiBi, and a plain MLP four times as wide."""

from __future__ import annotations

from octavo.errors import ModelError
from octavo.models.families.record import Config, Family, Fields, Gguf, Names, Stack
from octavo.models.families.settings import alibi_slopes
from octavo.models.gguf_metadata import Metadata
from octavo.models.spec import NO_ROPE

_ATTENTION = {"alibi": True, "qk_ln": False, "prefix_lm": False, "attn_type": "multihead_attention"}


def _fields(config: Config) -> Fields:
    attention = config.get("attn_config") or {}
    for setting, only in _ATTENTION.items():
        if attention.get(setting, only) != only:
            raise ModelError(f"attn_config {setting} {attention[setting]!r} is not supported, only {only!r}")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return {
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": int(config["expansion_ratio"] * hidden),
        "rope": NO_ROPE,
        "windows": (None,) * config["num_hidden_layers"],
        "attention_scale": attention.get("softmax_scale") or (hidden // heads) ** -0.5,
        "activation": "gelu",
        "layer_norm": True,
        "qkv_clip": attention.get("clip_qkv") or None,
        "gated": False,
        "alibi_slopes": alibi_slopes(heads, attention.get("alibi_bias_max", 8)),
    }


_DEFAULTS: Config = {
    "vocab_size": 50_368, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "expansion_ratio": 4, "intermediate_size": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
_KEYS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_seq_len": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
}
_PARTS = {
    "embedding": "wte",
    "final_norm": "norm_f",
    "attention_norm": "norm_1",
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "out": "attn.out_proj",
    "mlp_norm": "norm_2",
    "up": "ffn.up_proj",
    "down": "ffn.down_proj",
}


def _from_gguf(meta: Metadata, config: Config) -> Config:
    attention = {"alibi": True, "alibi_bias_max": meta.required("attention.max_alibi_bias")}
    return {
        "attn_config": attention | {"clip_qkv": meta.own("attention.clamp_kqv")},
        "expansion_ratio": config["intermediate_size"] / config["hidden_size"],
    }


FAMILIES = (
    Family(
        model_type="mpt",
        title="MPT",
        fields=_fields,
        defaults=_DEFAULTS,
        keys=_KEYS,
        only={"no_bias": (True,)},
        names=Names(layer="blocks.{}.", parts=_PARTS, stacks={"attn.Wqkv": Stack(("q", "k", "v"))}),
        gguf=Gguf(architecture="mpt", config=_from_gguf),
    ),
)
