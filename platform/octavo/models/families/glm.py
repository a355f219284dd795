"""GLM 4: half of each head is rotated, neighbours together; from 0414 on norms follow the branches too. With experts,
halves are rotated together, and sigmoids and a bias choose them, beside one that every token goes through."""

from __future__ import annotations

from octavo.models.families.record import GATED_STACK, GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata

_GLM: Config = {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 13_696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "attention_bias": True, "attention_out_bias": False,
    "eos_token_id": [151_329, 151_336, 151_338],
}  # fmt: skip

_POST_NORMS = {"post_attention_norm": "post_self_attn_layernorm", "post_mlp_norm": "post_mlp_layernorm"}
_MOE: Config = {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 10_944, "num_hidden_layers": 46,
    "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5, "moe_intermediate_size": 1408, "num_experts": 128, "n_routed_experts": 128,
    "num_local_experts": None, "num_experts_per_tok": 8, "n_shared_experts": 1, "routed_scaling_factor": 1.0,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "use_qk_norm": False,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    own = {
        "intermediate_size": config["moe_intermediate_size"],
        "shared_expert_size": config["moe_intermediate_size"] * config["n_shared_experts"],
        "shared_gate": False,
        "router_scoring": "sigmoid",
        "choice_bias": True,
        "expert_groups": config["n_group"],
        "kept_groups": config["topk_group"],
        "expert_scale": config["routed_scaling_factor"],
        "qk_norm": bool(config["use_qk_norm"]),
        "out_bias": False,
        "mlp_bias": False,
    }
    return expert_fields(config) | own


def _from_gguf(meta: Metadata, config: Config) -> Config:
    predictors = meta.own("nextn_predict_layers") or 0
    found = {
        "n_shared_experts": meta.own("expert_shared_count"),
        "routed_scaling_factor": meta.own("expert_weights_scale"),
        "n_group": meta.own("expert_group_count"),
        "topk_group": meta.own("expert_group_used_count"),
        "first_k_dense_replace": meta.own("leading_dense_block_count"),
        "norm_topk_prob": meta.own("expert_weights_norm"),
        "num_hidden_layers": config["num_hidden_layers"] - predictors,
        "num_nextn_predict_layers": predictors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in meta.tensors,
    }
    return {name: value for name, value in found.items() if value is not None}


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
        fields=_fields,
        defaults=_MOE,
        keys={"n_routed_experts": "num_experts"},
        names=Names(
            parts={
                "router": "mlp.gate",
                "router.choice_bias": "mlp.gate.e_score_correction_bias",
                "expert_gate": "mlp.experts.{}.gate_proj",
                "expert_up": "mlp.experts.{}.up_proj",
                "expert_down": "mlp.experts.{}.down_proj",
                "gate": "mlp.shared_experts.gate_proj",
                "up": "mlp.shared_experts.up_proj",
                "down": "mlp.shared_experts.down_proj",
            }
        ),
        gguf=Gguf(
            architecture="glm4moe",
            config=_from_gguf,
            parts=GGUF_SHARED_EXPERT | {"mlp_norm": "post_attention_norm"},
        ),
    ),
)
