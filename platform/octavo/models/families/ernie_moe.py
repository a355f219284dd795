"""ERNIE 4.5 with experts: a softmax and a bias choose them, beside those that every token goes through."""

from __future__ import annotations

from octavo.models.families.grouped_experts import PARTS
from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata

_DEFAULTS: Config = {
    "vocab_size": 103_424, "hidden_size": 2560, "intermediate_size": 12_288, "num_hidden_layers": 28,
    "num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": 64, "num_local_experts": None, "num_experts_per_tok": 6, "moe_intermediate_size": 1536,
    "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    layers, last = config["num_hidden_layers"], config["moe_layer_end_index"]
    mixed = range(config["moe_layer_start_index"], layers if last == -1 else last + 1)
    dense = tuple(i for i in range(layers) if i not in mixed or (i + 1) % config["moe_layer_interval"])
    own = {
        "intermediate_size": config["moe_intermediate_size"],
        "shared_expert_size": config["moe_intermediate_size"] * config["moe_num_shared_experts"],
        "shared_gate": False,
        "choice_bias": True,
        "normalise_experts": True,
        "dense_layers": dense,
        "dense_size": config["intermediate_size"] if dense else 0,
    }
    return expert_fields(config) | own


def _from_gguf(meta: Metadata, _config: Config) -> Config:
    return {
        "moe_num_shared_experts": meta.own("expert_shared_count") or 0,
        "moe_layer_start_index": meta.own("leading_dense_block_count") or 0,
        "moe_layer_interval": meta.own("interleave_moe_layer_step") or 1,
    }


FAMILIES = (
    Family(
        model_type="ernie4_5_moe",
        title="ERNIE 4.5 with experts",
        fields=_fields,
        defaults=_DEFAULTS,
        keys={"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"},
        only={"use_bias": (False,), "moe_norm_min": (1e-12,)},
        names=Names(
            parts=PARTS | {"router.choice_bias": "mlp.moe_statics.e_score_correction_bias"},
            interleaved=True,
        ),
        gguf=Gguf(architecture="ernie4_5-moe", config=_from_gguf, interleaved=True, parts=GGUF_SHARED_EXPERT),
    ),
)
