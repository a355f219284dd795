"""Qwen 3.5 and Qwen 3-Next: three of four layers have a gated delta net in place of attention, which has a gate.

llama.cpp's converter moves the value heads of Qwen 3.5 (`_LinearAttentionVReorderBase` in conversion/qwen.py): the
first ones of all key heads come first. They stay where they are, and `tiled_value_heads` says so.
"""

from __future__ import annotations

from octavo.models.families.qwen import EXPERTS
from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names, Stack
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata
from octavo.models.recurrent_spec import DeltaNet

_QWEN35: Config = {
    "vocab_size": 248_320, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 32,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 32_768,
    "partial_rotary_factor": 0.25, "layer_types": None, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "tiled_value_heads": False,
}  # fmt: skip
_QWEN35_MOE: Config = _QWEN35 | {
    "hidden_size": 2048, "num_hidden_layers": 40, "num_key_value_heads": 2, "num_experts": 256,
    "num_local_experts": None, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "norm_topk_prob": True,
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
_EXPERTS = {
    "mlp.experts.gate_up_proj": Stack(("expert_gate", "expert_up"), experts=True),
    "mlp.experts.down_proj": Stack(("expert_down",), experts=True),
}
_NEXT_PARTS = _PARTS | {"delta_z": "linear_attn.z", "delta_b": "linear_attn.b", "delta_a": "linear_attn.a"}

_GGUF_PARTS = {
    "q": "attn_query", "q_gate": "attn_query_gate", "delta_q": "delta_query", "delta_k": "delta_key",
    "delta_v": "delta_value", "delta_z": "attn_gate", "delta_b": "ssm_beta", "delta_a": "ssm_alpha",
    "conv": "ssm_conv1d", "delta_decay.weight": "ssm_a", "delta_step.weight": "ssm_dt.bias", "delta_scale": "ssm_norm",
    "delta_out": "ssm_out", "mlp_norm": "post_attention_norm",
}  # fmt: skip
_GGUF_STACKS = {
    "attn_q": Stack(("q", "q_gate"), grouped=True),
    "attn_qkv": Stack(("delta_q", "delta_k", "delta_v")),
    "ssm_in": Stack(("delta_q", "delta_k", "delta_v", "delta_z"), grouped=True),  # until January 2026
    "ssm_ba": Stack(("delta_b", "delta_a"), grouped=True),
}


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
        tiled=bool(config["tiled_value_heads"]),
    )
    delta = {"recurrent": recurrent, "recurrence": net if recurrent else None}
    return {"qk_norm": True, "mlp_bias": False, "attention_gate": True} | delta


def _with_experts(config: Config) -> Fields:
    sizes = {
        "intermediate_size": config["moe_intermediate_size"],
        "shared_expert_size": config["shared_expert_intermediate_size"],
    }
    return _fields(config) | sizes | expert_fields(config)


def _from_gguf(meta: Metadata, config: Config) -> Config:
    """Layers behind the last, which guess further tokens, are not loaded."""
    layers, heads = (
        config["num_hidden_layers"] - (meta.own("nextn_predict_layers") or 0),
        meta.required("ssm.time_step_rank"),
    )
    types = ["linear" if f"blk.{i}.ssm_conv1d.weight" in meta.tensors else "full_attention" for i in range(layers)]
    return {
        "num_hidden_layers": layers,
        "layer_types": types,
        "linear_conv_kernel_dim": meta.required("ssm.conv_kernel"),
        "linear_key_head_dim": meta.required("ssm.state_size"),
        "linear_value_head_dim": meta.required("ssm.inner_size") // heads,
        "linear_num_key_heads": meta.required("ssm.group_count"),
        "linear_num_value_heads": heads,
        "tiled_value_heads": meta.architecture != "qwen3next",
    }


def _gguf(architecture: str) -> Gguf:
    parts = _GGUF_PARTS | (GGUF_SHARED_EXPERT if architecture != "qwen35" else {})
    return Gguf(architecture=architecture, config=_from_gguf, parts=parts, stacks=_GGUF_STACKS)


FAMILIES = (
    Family(
        model_type="qwen3_5_text",
        title="Qwen 3.5",
        fields=_fields,
        defaults=_QWEN35,
        only={"hidden_act": ("silu", "swish")},  # also the convolution's
        names=Names(parts=_PARTS, stacks=_STACKS, norm_offset=1.0, logarithms=("delta_decay",)),
        outer=("qwen3_5",),
        gguf=_gguf("qwen35"),
    ),
    Family(
        model_type="qwen3_5_moe_text",
        title="Qwen 3.5 with experts",
        fields=_with_experts,
        defaults=_QWEN35_MOE,
        only={"norm_topk_prob": (True,)},
        names=Names(parts=_PARTS | EXPERTS, stacks=_STACKS | _EXPERTS, norm_offset=1.0, logarithms=("delta_decay",)),
        outer=("qwen3_5_moe",),
        gguf=_gguf("qwen35moe"),
    ),
    Family(
        model_type="qwen3_next",
        title="Qwen 3-Next",
        fields=_with_experts,
        defaults=_QWEN3_NEXT,
        names=Names(parts=_NEXT_PARTS | EXPERTS, stacks=_NEXT_STACKS, norm_offset=1.0, logarithms=("delta_decay",)),
        gguf=_gguf("qwen3next"),
    ),
)
