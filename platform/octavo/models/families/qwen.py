"""Qwen 2, with biases on queries, keys and values; Qwen 3, with norms of queries and keys; both with experts too."""

from __future__ import annotations

from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata

_QWEN2: Config = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
    "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_QWEN2_MOE: Config = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_experts": 60, "num_local_experts": None, "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "qkv_bias": True,
}  # fmt: skip
_QWEN3_MOE: Config = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
    "num_experts": 128, "num_local_experts": None, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip

_NO_WINDOWS = {"use_sliding_window": (False,)}
"""Of mixtures, where transformers has them in other layers than `max_window_layers` says; Qwen's own have none."""

EXPERTS = {
    "router": "mlp.gate",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
    "gate": "mlp.shared_expert.gate_proj",
    "up": "mlp.shared_expert.up_proj",
    "down": "mlp.shared_expert.down_proj",
    "shared_gate": "mlp.shared_expert_gate",
}


def _qwen2_moe(config: Config) -> Fields:
    sizes = {
        "intermediate_size": config["moe_intermediate_size"],
        "shared_expert_size": config["shared_expert_intermediate_size"],
    }
    biases = {"qkv_bias": bool(config["qkv_bias"]), "out_bias": False, "mlp_bias": False}
    return biases | sizes | expert_fields(config)


def _qwen2_moe_gguf(_meta: Metadata, config: Config) -> Config:
    """Older files leave out sizes that follow from the MLP's; shares are never normalised."""
    whole = config["intermediate_size"]
    sizes = {
        "moe_intermediate_size": whole // config["num_experts_per_tok"],
        "shared_expert_intermediate_size": whole,
    }
    return {name: config.get(name, size) for name, size in sizes.items()}


def _qwen3_moe(config: Config) -> Fields:
    inner = {"intermediate_size": config["moe_intermediate_size"]}
    return {"qk_norm": True, "mlp_bias": False} | inner | expert_fields(config)


FAMILIES = (
    Family(
        model_type="qwen2",
        title="Qwen 2, Qwen 2.5",
        fields=lambda config: {"qkv_bias": True, "out_bias": False, "mlp_bias": False},
        defaults=_QWEN2,
        gguf=Gguf(architecture="qwen2"),
    ),
    Family(
        model_type="qwen3",
        title="Qwen 3",
        fields=lambda config: {"qk_norm": True, "mlp_bias": False},
        defaults=_QWEN2 | {"head_dim": 128},
        gguf=Gguf(architecture="qwen3"),
    ),
    Family(
        model_type="qwen2_moe",
        title="Qwen 2 with experts",
        fields=_qwen2_moe,
        defaults=_QWEN2_MOE,
        only=_NO_WINDOWS,
        names=Names(parts=EXPERTS),
        gguf=Gguf(architecture="qwen2moe", config=_qwen2_moe_gguf, parts=GGUF_SHARED_EXPERT),
    ),
    Family(
        model_type="qwen3_moe",
        title="Qwen 3 with experts",
        fields=_qwen3_moe,
        defaults=_QWEN3_MOE,
        only=_NO_WINDOWS,
        names=Names(parts=EXPERTS),
        gguf=Gguf(architecture="qwen3moe", config=lambda meta, config: {"norm_topk_prob": True}),
    ),
)
