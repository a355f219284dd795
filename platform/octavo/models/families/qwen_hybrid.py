"""Qwen 3.5 and Qwen 3-Next: three of four layers have a gated delta net in place of attention, which has a gate."""

from __future__ import annotations

from octavo.models.families.qwen import EXPERTS
from octavo.models.families.record import Config, Family, Fields, Names, Stack
from octavo.models.families.settings import expert_fields
from octavo.models.recurrent_spec import DeltaNet

_QWEN35: Config = {
    "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 32_768,
    "partial_rotary_factor": 0.25, "layer_types": None, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip
_QWEN3_NEXT: Config = _QWEN35 | {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
    "num_key_value_heads": 2, "num_experts": 512, "num_local_experts": None, "num_experts_per_tok": 10,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": True,
}  # fmt: skip

_PARTS = {
    "q": "self_attn.q", "q_gate": "self_attn.gate", "delta_q": "linear_attn.q", "delta_k": "linear_attn.k",
    "delta_v": "linear_attn.v", "delta_z": "linear_attn.in_proj_z", "delta_b": "linear_attn.in_proj_b",
    "delta_a": "linear_attn.in_proj_a", "conv": "linear_attn.conv1d", "delta_decay.weight": "linear_attn.A_log",
    "delta_step.weight": "linear_attn.dt_bias", "delta_scale": "linear_attn.norm", "delta_out": "linear_attn.out_proj",
}  # fmt: skip
_STACKS = {
    "self_attn.q_proj": Stack(("q", "q_gate"), grouped=True),
    "linear_attn.in_proj_qkv": Stack(("delta_q", "delta_k", "delta_v")),
}
_NEXT_STACKS = {
    "self_attn.q_proj": Stack(("q", "q_gate"), grouped=True),
    "linear_attn.in_proj_qkvz": Stack(("delta_q", "delta_k", "delta_v", "delta_z"), grouped=True),
    "linear_attn.in_proj_ba": Stack(("delta_b", "delta_a"), grouped=True),
}
_NEXT_PARTS = _PARTS | {"delta_z": "linear_attn.z", "delta_b": "linear_attn.b", "delta_a": "linear_attn.a"}


def _fields(config: Config) -> Fields:
    layers, every = config["num_hidden_layers"], config["full_attention_interval"]
    types = config["layer_types"] or ["linear" if (i + 1) % every else "full_attention" for i in range(layers)]
    recurrent = tuple(i for i, kind in enumerate(types) if kind != "full_attention")
    net = DeltaNet(
        key_heads=config["linear_num_key_heads"],
        value_heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        taps=config["linear_conv_kernel_dim"],
    )
    delta = {"recurrent": recurrent, "recurrence": net if recurrent else None}
    return {"qk_norm": True, "mlp_bias": False, "attention_gate": True} | delta


def _qwen3_next(config: Config) -> Fields:
    sizes = {
        "intermediate_size": config["moe_intermediate_size"],
        "shared_expert_size": config["shared_expert_intermediate_size"],
    }
    return _fields(config) | sizes | expert_fields(config)


FAMILIES = (
    Family(
        model_type="qwen3_5_text",
        title="Qwen 3.5",
        fields=_fields,
        defaults=_QWEN35,
        names=Names(parts=_PARTS, stacks=_STACKS, norm_offset=1.0, logarithms=("delta_decay",)),
        outer=("qwen3_5",),
    ),
    Family(
        model_type="qwen3_next",
        title="Qwen 3-Next",
        fields=_qwen3_next,
        defaults=_QWEN3_NEXT,
        names=Names(parts=_NEXT_PARTS | EXPERTS, stacks=_NEXT_STACKS, norm_offset=1.0, logarithms=("delta_decay",)),
    ),
)
