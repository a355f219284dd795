"""StarCoder: layer norms, biases everywhere and a plain MLP; the first had one key-value head and learned positions."""

from __future__ import annotations

from octavo.models.families.gpt import GPT2, GPT2_KEYS, GPT2_ONLY, GPT2_PARTS, learned_positions
from octavo.models.families.record import Config, Family, Fields, Gguf, Names, Stack

_STARCODER2: Config = {
    "vocab_size": 49_152, "hidden_size": 3072, "intermediate_size": 12_288, "num_hidden_layers": 30,
    "num_attention_heads": 24, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "hidden_act": "gelu_pytorch_tanh", "use_sliding_window": True, "sliding_window": None, "use_bias": True,
    "tie_word_embeddings": True, "bos_token_id": 50_256, "eos_token_id": 50_256,
}  # fmt: skip


def _starcoder2(config: Config) -> Fields:
    biases = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bool(config["use_bias"]))
    return biases | {"layer_norm": True, "norm_bias": True, "gated": False}


def _bigcode(config: Config) -> Fields:
    return learned_positions(config) | {"num_kv_heads": 1 if config["multi_query"] else config["num_attention_heads"]}


FAMILIES = (
    Family(
        model_type="starcoder2",
        title="StarCoder2",
        fields=_starcoder2,
        defaults=_STARCODER2,
        keys={"norm_epsilon": "rms_norm_eps"},
        names=Names(parts={"up": "mlp.c_fc", "down": "mlp.c_proj"}),
        gguf=Gguf(architecture="starcoder2"),
    ),
    Family(
        model_type="gpt_bigcode",
        title="StarCoder, SantaCoder",
        fields=_bigcode,
        defaults=GPT2 | {"hidden_act": "gelu_pytorch_tanh", "multi_query": True},
        keys=GPT2_KEYS,
        only=GPT2_ONLY,
        names=Names(layer="h.{}.", parts=GPT2_PARTS, stacks={"attn.c_attn": Stack(("q", "k", "v"), grouped=True)}),
        gguf=Gguf(architecture="starcoder"),
    ),
)
