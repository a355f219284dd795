"""OLMo: at first layer norms without weights, since 2 norms of the branches alone and of all queries and keys; in 3 a
window on three layers of four, and scaled positions only on the fourth. With experts, norms come first."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names
from octavo.models.families.rope_settings import local_rope
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata

_OLMO: Config = {
    "vocab_size": 50_304, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50_279,
}  # fmt: skip
_OLMO3: Config = _OLMO | {
    "use_sliding_window": True, "sliding_window": 4096, "sliding_window_pattern": 4, "rope_theta": 500_000.0,
}  # fmt: skip

_OLMOE: Config = _OLMO | {
    "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
    "max_position_embeddings": 4096, "num_experts": 64, "num_local_experts": None, "num_experts_per_tok": 8,
}  # fmt: skip

_FLEX: Config = _OLMO | {
    "vocab_size": 100_352, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500_000.0,
    "num_experts": 7, "num_local_experts": None, "num_experts_per_tok": 5, "eos_token_id": 100_257,
}  # fmt: skip

_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
_EXPERTS = {
    "router": "mlp.gate",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
}
_NAMES = Names(parts=_POST_NORMS)


def _olmo(config: Config) -> Fields:
    norms = {"layer_norm": True, "norm_weights": False, "norm_eps": 1e-5}  # whatever the config says
    return norms | {"qkv_clip": config["clip_qkv"], "mlp_bias": False}


def _olmo2(_config: Config) -> Fields:
    return {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_span": "heads", "mlp_bias": False}


def _olmo3(config: Config) -> Fields:
    local = {"rope_local_base_freq": config["rope_theta"]} | config
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    return _olmo2(config) | {"local_rope": local_rope(local, head_dim)}


def _olmoe(config: Config) -> Fields:
    return expert_fields(config) | {"qk_norm": True, "qk_norm_span": "heads", "mlp_bias": False}


def _from_gguf(meta: Metadata, config: Config) -> Config:
    return {"model_type": "olmo3"} | meta.window_pattern() if config.get("sliding_window") else {}


FAMILIES = (
    Family(
        model_type="olmo",
        title="OLMo",
        fields=_olmo,
        defaults=_OLMO | {"clip_qkv": None},
        gguf=Gguf(
            architecture="olmo",
            config=lambda meta, config: {"clip_qkv": meta.own("attention.clamp_kqv")},
            interleaved=True,
        ),
    ),
    Family(
        model_type="olmoe",
        title="OLMoE",
        fields=_olmoe,
        defaults=_OLMOE,
        names=Names(parts=_EXPERTS),
        gguf=Gguf(architecture="olmoe"),
    ),
    Family(
        model_type="flex_olmo",
        title="FlexOlmo",
        fields=lambda config: _olmo2(config) | expert_fields(config),
        defaults=_FLEX,
        names=Names(parts=_POST_NORMS | _EXPERTS),
    ),
    Family(
        model_type="olmo2",
        title="OLMo 2",
        fields=_olmo2,
        defaults=_OLMO,
        names=_NAMES,
        gguf=Gguf(architecture="olmo2", config=_from_gguf),
    ),
    Family(
        model_type="olmo3",
        title="OLMo 3",
        fields=_olmo3,
        defaults=_OLMO3,
        names=_NAMES,
        gguf=Gguf(architecture="olmo2"),
    ),
)
