"""Mixtral: Mistral with experts, whose weights are normalised to add up to 1."""

from __future__ import annotations

from octavo.models.families.llama import GGUF, MISTRAL, NO_BIASES
from octavo.models.families.record import Family, Names
from octavo.models.families.settings import expert_fields

FAMILIES = (
    Family(
        model_type="mixtral",
        title="Mixtral",
        fields=lambda config: NO_BIASES | expert_fields(config) | {"normalise_experts": True},
        defaults=MISTRAL
        | {
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_experts": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        names=Names(
            parts={
                "router": "block_sparse_moe.gate",
                "expert_gate": "block_sparse_moe.experts.{}.w1",
                "expert_up": "block_sparse_moe.experts.{}.w3",
                "expert_down": "block_sparse_moe.experts.{}.w2",
            }
        ),
        gguf=GGUF,
    ),
)
