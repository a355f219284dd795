"""Families that differ from Llama in sizes, biases and an activation."""

from __future__ import annotations

from octavo.models.families.llama import GGUF, MISTRAL, NO_BIASES
from octavo.models.families.record import Config, Family, Fields, Gguf, Names

_SEED: Config = {
    "vocab_size": 155_136, "hidden_size": 4096, "intermediate_size": 27_648, "num_hidden_layers": 64,
    "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524_288,
    "attention_bias": True, "attention_out_bias": False, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_MINISTRAL3: Config = MISTRAL | {
    "vocab_size": 131_072, "num_hidden_layers": 34, "head_dim": 128, "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5, "sliding_window": None,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_max_position_embeddings": 16_384, "mscale": 1.0, "mscale_all_dim": 1.0,
                        "llama_4_scaling_beta": 0.1},
}  # fmt: skip
_INTERNLM3: Config = {
    "vocab_size": 128_512, "hidden_size": 4096, "intermediate_size": 10_240, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ARCEE: Config = {
    "vocab_size": 32_000, "hidden_size": 2560, "intermediate_size": 18_432, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "relu2",
    "bos_token_id": 128_000, "eos_token_id": 128_001,
}  # fmt: skip
_NEMOTRON: Config = {
    "vocab_size": 256_000, "hidden_size": 6144, "intermediate_size": 24_576, "num_hidden_layers": 32,
    "num_attention_heads": 48, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "relu2",
    "partial_rotary_factor": 0.5, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
_ERNIE: Config = {
    "vocab_size": 103_424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _grown(config: Config) -> Fields:
    rope = config["rope_parameters"]
    growth = {"query_growth": rope["llama_4_scaling_beta"]}
    return NO_BIASES | growth | {"query_growth_positions": rope["original_max_position_embeddings"]}


FAMILIES = (
    Family(
        model_type="ministral",
        title="Ministral",
        defaults=MISTRAL | {"layer_types": None},
        fields=lambda config: NO_BIASES,
    ),
    Family(
        model_type="ministral3",
        title="Ministral 3",
        defaults=_MINISTRAL3,
        fields=_grown,
    ),
    Family(
        model_type="seed_oss",
        title="Seed-OSS",
        defaults=_SEED,
        gguf=Gguf(architecture="seed_oss", parts={"mlp_norm": "post_attention_norm"}),
    ),
    Family(
        model_type="internlm3",
        title="InternLM 3",
        defaults=_INTERNLM3,
        keys={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
        gguf=GGUF,
    ),
    Family(
        model_type="arcee",
        title="Arcee AFM",
        defaults=_ARCEE,
        fields=lambda config: {"gated": False},
        gguf=Gguf(architecture="arcee", interleaved=True),
    ),
    Family(
        model_type="nemotron",
        title="Nemotron, Minitron",
        defaults=_NEMOTRON,
        keys={"norm_eps": "rms_norm_eps"},
        fields=lambda config: {"layer_norm": True, "norm_bias": True, "gated": False},
        names=Names(norm_offset=1.0),
        gguf=Gguf(architecture="nemotron"),
    ),
    Family(
        model_type="ernie4_5",
        title="ERNIE 4.5 (0.3B)",
        defaults=_ERNIE,
        keys={"use_bias": "attention_bias"},
        fields=lambda config: {"mlp_bias": bool(config["attention_bias"])},
        names=Names(interleaved=True),
        gguf=Gguf(architecture="ernie4_5", interleaved=True),
    ),
)
