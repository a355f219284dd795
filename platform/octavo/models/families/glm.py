"""GLM 4: half of each head is rotated, neighbours together; from 0414 on norms follow the branches too."""

from __future__ import annotations

from octavo.models.families.record import GATED_STACK, Config, Family, Fields, Gguf, Names

_GLM: Config = {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 13_696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "attention_bias": True, "attention_out_bias": False,
    "eos_token_id": [151_329, 151_336, 151_338],
}  # fmt: skip

_POST_NORMS = {"post_attention_norm": "post_self_attn_layernorm", "post_mlp_norm": "post_mlp_layernorm"}


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
)
