"""Phi: since 3 a Llama whose matrices are stored stacked, with two sets of rotary frequencies where contexts are long;
Phi 1 and 2 with attention and MLP side by side."""

from __future__ import annotations

from octavo.models.families.llama import NO_BIASES
from octavo.models.families.record import GATED_STACK, Config, Family, Fields, Gguf, Names, Stack

_PHI: Config = {
    "vocab_size": 51_200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_PHI3: Config = {
    "vocab_size": 32_064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "use_sliding_window": True, "sliding_window": None,
    "partial_rotary_factor": 1.0, "bos_token_id": 1, "eos_token_id": 32_000,
}  # fmt: skip


def _phi(_config: Config) -> Fields:
    biases = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "norm_bias", "head_bias"), True)
    return biases | {"layer_norm": True, "gated": False, "parallel": True, "shared_norm": True}


FAMILIES = (
    Family(
        model_type="phi",
        title="Phi-1, Phi-2",
        fields=_phi,
        defaults=_PHI,
        keys={"layer_norm_eps": "rms_norm_eps"},
        names=Names(
            parts={"final_norm": "final_layernorm", "out": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}
        ),
        gguf=Gguf(architecture="phi2"),
    ),
    Family(
        model_type="phi3",
        title="Phi-3, Phi-3.5, Phi-4",
        fields=lambda config: NO_BIASES,
        defaults=_PHI3,
        names=Names(stacks={"self_attn.qkv_proj": Stack(("q", "k", "v")), "mlp.gate_up_proj": GATED_STACK}),
        gguf=Gguf(architecture="phi3", stacks={"ffn_up": GATED_STACK}),
    ),
)
