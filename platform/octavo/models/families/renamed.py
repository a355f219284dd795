"""Llamas by other names, whose code never came into transformers: InternLM 2, with the rows of a head's query, key and
value beside each other, and EXAONE 3."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Gguf, Names, Stack

_INTERNLM2: Config = {
    "vocab_size": 103_168, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXAONE: Config = {
    "vocab_size": 102_400, "hidden_size": 2048, "intermediate_size": None, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip

FAMILIES = (
    Family(
        model_type="internlm2",
        title="InternLM 2, InternLM 2.5",
        defaults=_INTERNLM2,
        keys={"bias": "attention_bias"},
        fields=lambda config: {"mlp_bias": False},
        names=Names(
            parts={
                "embedding": "tok_embeddings",
                "lm_head": "output",
                "attention_norm": "attention_norm",
                "out": "attention.wo",
                "mlp_norm": "ffn_norm",
                "gate": "feed_forward.w1",
                "up": "feed_forward.w3",
                "down": "feed_forward.w2",
            },
            stacks={"attention.wqkv": Stack(("q", "k", "v"), grouped=True)},
        ),
        gguf=Gguf(architecture="internlm2", interleaved=True),
    ),
    Family(
        model_type="exaone",
        title="EXAONE 3, EXAONE 3.5",
        defaults=_EXAONE,
        keys={
            "num_layers": "num_hidden_layers",
            "layer_norm_epsilon": "rms_norm_eps",
            "activation_function": "hidden_act",
        },
        fields=lambda config: {"intermediate_size": config["intermediate_size"] or 4 * config["hidden_size"]},
        names=Names(
            layer="h.{}.",
            parts={
                "embedding": "wte",
                "final_norm": "ln_f",
                "attention_norm": "ln_1",
                "q": "attn.attention.q_proj",
                "k": "attn.attention.k_proj",
                "v": "attn.attention.v_proj",
                "out": "attn.attention.out_proj",
                "mlp_norm": "ln_2",
                "gate": "mlp.c_fc_0",
                "up": "mlp.c_fc_1",
                "down": "mlp.c_proj",
            },
        ),
        gguf=Gguf(architecture="exaone"),
    ),
)
