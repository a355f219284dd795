"""GLM 4: half of each head is rotated, neighbours together; from 0414 on norms follow the branches too. With experts,
halves are rotated together, and sigmoids and a bias choose them, beside one that every token goes through. The small
one has latent attention."""

from __future__ import annotations

from octavo.models.families.grouped_experts import (
    GROUPED_EXPERTS,
    KEYS,
    PARTS,
    grouped_expert_fields,
    grouped_experts_from_gguf,
)
from octavo.models.families.latent import LATENT, ONLY, STACKS, latent_fields
from octavo.models.families.latent import PARTS as LATENT_PARTS
from octavo.models.families.record import GATED_STACK, GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names
from octavo.models.gguf_metadata import Metadata

_GLM: Config = {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 13_696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "attention_bias": True, "attention_out_bias": False,
    "eos_token_id": [151_329, 151_336, 151_338],
}  # fmt: skip

_POST_NORMS = {"post_attention_norm": "post_self_attn_layernorm", "post_mlp_norm": "post_mlp_layernorm"}
_MOE: Config = GROUPED_EXPERTS | {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 10_944, "num_hidden_layers": 46,
    "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5, "num_experts": 128, "n_routed_experts": 128, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "use_qk_norm": False,
}  # fmt: skip


_LITE: Config = GROUPED_EXPERTS | LATENT | {
    "vocab_size": 154_880, "hidden_size": 2048, "intermediate_size": 10_240, "num_hidden_layers": 47,
    "num_attention_heads": 20, "max_position_embeddings": 202_752, "rms_norm_eps": 1e-5, "num_experts": 64,
    "n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536, "q_lora_rank": 768,
    "qk_nope_head_dim": 192, "v_head_dim": 256, "first_k_dense_replace": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.8, "mlp_layer_types": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def _lite(config: Config) -> Fields:
    kinds = config["mlp_layer_types"]
    if kinds is not None:
        dense = [i for i, kind in enumerate(kinds) if kind == "dense"]
        config = config | {"mlp_only_layers": dense, "first_k_dense_replace": 0}
    return grouped_expert_fields(config) | latent_fields(config)


def _moe(config: Config) -> Fields:
    return grouped_expert_fields(config) | {"qk_norm": bool(config["use_qk_norm"]), "out_bias": False}


def _moe_from_gguf(meta: Metadata, config: Config) -> Config:
    return grouped_experts_from_gguf(meta, config) | {"use_qk_norm": "blk.0.attn_q_norm.weight" in meta.tensors}


def _glm4(_config: Config) -> Fields:
    return {"post_norms": True}


FAMILIES = (
    Family(
        model_type="glm",
        title="GLM-4-9B (2024)",
        defaults=_GLM,
        names=Names(stacks={"mlp.gate_up_proj": GATED_STACK}, interleaved=True),
        gguf=Gguf(architecture="chatglm", interleaved=True, stacks={"ffn_up": GATED_STACK}),
    ),
    Family(
        model_type="glm4",
        title="GLM-4, GLM-Z1 (0414)",
        fields=_glm4,
        defaults=_GLM,
        names=Names(parts=_POST_NORMS, stacks={"mlp.gate_up_proj": GATED_STACK}, interleaved=True),
        gguf=Gguf(architecture="glm4", interleaved=True, stacks={"ffn_up": GATED_STACK}),
    ),
    Family(
        model_type="glm4_moe",
        title="GLM-4.5, 4.6, 4.7",
        fields=_moe,
        defaults=_MOE,
        keys=KEYS,
        names=Names(parts=PARTS),
        gguf=Gguf(
            architecture="glm4moe",
            config=_moe_from_gguf,
            parts=GGUF_SHARED_EXPERT | {"mlp_norm": "post_attention_norm"},
        ),
    ),
    Family(
        model_type="glm4_moe_lite",
        title="GLM-4.7-Flash",
        fields=_lite,
        defaults=_LITE,
        keys=KEYS,
        only=ONLY,
        names=Names(parts=PARTS | LATENT_PARTS, stacks=STACKS, interleaved=True),
    ),
)
