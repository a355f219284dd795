"""gpt-oss: experts with biases and clamped gates, sinks in attention, a window in every other layer."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names, Stack
from octavo.models.families.settings import expert_fields

_DEFAULTS: Config = {
    "vocab_size": 201_088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "attention_bias": True, "num_experts": None, "num_local_experts": 128,
    "num_experts_per_tok": 4, "swiglu_limit": 7.0, "rope_theta": 150_000.0,
    "use_sliding_window": True, "sliding_window": 128, "sliding_window_pattern": 2,
    "rope_parameters": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
                        "truncate": False},
}  # fmt: skip

_GATE_UP, _DOWN = ("expert_gate", "expert_up"), ("expert_down",)


def _fields(config: Config) -> Fields:
    own = {
        "mlp_bias": False,
        "router_bias": True,
        "expert_bias": True,
        "sinks": True,
        "swiglu_limit": config["swiglu_limit"],
    }
    return expert_fields(config) | own | {"normalise_experts": True}


FAMILIES = (
    Family(
        model_type="gpt_oss",
        title="gpt-oss",
        fields=_fields,
        defaults=_DEFAULTS,
        only={"swiglu_alpha": (1.702,)},
        names=Names(
            parts={
                "router": "mlp.router",
                "expert_gate": "mlp.experts.gate.{}",
                "expert_up": "mlp.experts.up.{}",
                "expert_down": "mlp.experts.down.{}",
                "sinks.weight": "self_attn.sinks",
            },
            stacks={
                "mlp.experts.gate_up_proj": Stack(_GATE_UP, alternating=True, experts=True, transposed=True),
                "mlp.experts.down_proj": Stack(_DOWN, experts=True, transposed=True),
                "mlp.experts.gate_up_proj_mxfp4": Stack(_GATE_UP, alternating=True, experts=True),
                "mlp.experts.down_proj_mxfp4": Stack(_DOWN, experts=True),
            },
        ),
        gguf=Gguf(
            architecture="gpt-oss",
            config=lambda meta, config: {"rope_parameters": {"truncate": False}},  # as the model has it
            parts={"mlp_norm": "post_attention_norm"},
        ),
    ),
)
