"""Mixtures as DeepSeek V3 has them: sigmoids and a bias choose from groups of experts, beside which one goes with every
token, and the first layers have none."""

from __future__ import annotations

from octavo.models.families.record import Config, Fields
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata

GROUPED_EXPERTS: Config = {
    "num_experts": None, "n_routed_experts": None, "num_local_experts": None, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408, "n_shared_experts": 1, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 0, "norm_topk_prob": False,
}  # fmt: skip
"""The settings that are read here."""

KEYS = {"n_routed_experts": "num_experts"}

PARTS = {
    "router": "mlp.gate",
    "router.choice_bias": "mlp.gate.e_score_correction_bias",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
    "gate": "mlp.shared_experts.gate_proj",
    "up": "mlp.shared_experts.up_proj",
    "down": "mlp.shared_experts.down_proj",
}
"""What checkpoints call them."""


def grouped_expert_fields(config: Config) -> Fields:
    """Of a complete config."""
    own = {
        "intermediate_size": config["moe_intermediate_size"],
        "shared_expert_size": config["moe_intermediate_size"] * (config["n_shared_experts"] or 0),
        "shared_gate": False,
        "router_scoring": "sigmoid",
        "choice_bias": True,
        "expert_groups": config["n_group"] or 0,
        "kept_groups": config["topk_group"] or 0,
        "expert_scale": float(config["routed_scaling_factor"]),
        "mlp_bias": False,
    }
    return expert_fields(config) | own


def grouped_experts_from_gguf(meta: Metadata, config: Config) -> Config:
    """The settings of a GGUF file; layers that guess further tokens are counted apart."""
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
    }
    return {name: value for name, value in found.items() if value is not None}
