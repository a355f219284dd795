"""Gemma: scaled embeddings and a tanh GELU; since Gemma 2 post norms, soft caps, an attention scale of its own, and a
window on every other layer; in Gemma 3 q/k norms, five layers with a window to one without, a rope base for each."""

from __future__ import annotations

import math

from octavo.models.families.record import POST_NORMS, Config, Family, Fields, Gguf, Names
from octavo.models.families.rope_settings import max_positions
from octavo.models.gguf_metadata import Metadata

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

_LARGEST = {("gemma2", 46), ("gemma3", 62)}
"""The 27B models by architecture and layers: they scale by hidden size / heads instead of the head size."""


def _gemma(config: Config) -> Fields:
    # the first configs say gelu, but their models use the tanh form
    old = config.get("hidden_activation") is None and config["hidden_act"] == "gelu"
    activation = {"activation": "gelu_tanh"} if old else {}
    return activation | {"embedding_scale": math.sqrt(config["hidden_size"]), "mlp_bias": False}


def _gemma2(config: Config) -> Fields:
    return {
        "embedding_scale": math.sqrt(config["hidden_size"]),
        "mlp_bias": False,
        "post_norms": True,
        "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": config.get("attn_logit_softcapping") or None,
        "logit_softcap": config.get("final_logit_softcapping") or None,
    }


def _gemma3(config: Config) -> Fields:
    own = {"qk_norm": True, "attention_softcap": None}  # what configs may still say of it is not computed any more
    return _gemma2(config) | own | {"max_position_embeddings": max_positions(config, linear=False)}


def _from_gguf(meta: Metadata, config: Config) -> Config:
    if meta.architecture == "gemma3":
        meta.required("attention.sliding_window")  # for Gemma 2 there is a default
    largest = (meta.architecture, config["num_hidden_layers"]) in _LARGEST
    width = config["hidden_size"] // config["num_attention_heads"] if largest else config["head_dim"]
    scale = meta.own("attention.scale")
    return {"query_pre_attn_scalar": scale**-2 if scale else width} | meta.window_pattern()


_NAMES = Names(norm_offset=1.0)  # checkpoints store the weight minus 1; GGUF's converter adds the 1 back
_WITH_POST_NORMS = Names(norm_offset=1.0, parts=POST_NORMS)

FAMILIES = (
    Family(
        model_type="gemma",
        title="Gemma",
        fields=_gemma,
        defaults=_GEMMA,
        names=_NAMES,
        gguf=Gguf(architecture="gemma"),
    ),
    Family(
        model_type="gemma2",
        title="Gemma 2",
        fields=_gemma2,
        defaults=_GEMMA2,
        names=_WITH_POST_NORMS,
        gguf=Gguf(architecture="gemma2", config=_from_gguf),
    ),
    Family(
        model_type="gemma3_text",
        title="Gemma 3 (text)",
        fields=_gemma3,
        defaults=_GEMMA3,
        names=_WITH_POST_NORMS,
        gguf=Gguf(architecture="gemma3", config=_from_gguf),
        outer=("gemma3",),
    ),
)
