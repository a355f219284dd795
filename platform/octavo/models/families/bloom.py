"""BLOOM and Falcon: layer norms, a plain MLP, and the rows of a head's query, key and value beside each other."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names, Stack
from octavo.models.families.settings import alibi_slopes
from octavo.models.gguf_metadata import Metadata
from octavo.models.spec import NO_ROPE

_BLOOM: Config = {
    "vocab_size": 250_880, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "max_position_embeddings": 2048, "intermediate_size": None, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_FALCON: Config = {
    "vocab_size": 65_024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "max_position_embeddings": 2048, "intermediate_size": None, "rms_norm_eps": 1e-5, "hidden_act": "gelu",
    "bias": False, "alibi": False, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True,
    "num_kv_heads": None, "num_ln_in_parallel_attn": None, "tie_word_embeddings": True, "bos_token_id": 11,
    "eos_token_id": 11,
}  # fmt: skip

_KEYS = {
    "n_embed": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "seq_length": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation": "hidden_act",
}
_NAMES = Names(
    layer="h.{}.",
    parts={
        "embedding": "word_embeddings",
        "embedding_norm": "word_embeddings_layernorm",
        "final_norm": "ln_f",
        "out": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    stacks={"self_attention.query_key_value": Stack(("q", "k", "v"), grouped=True)},
    renamed={"ln_attn": "input_layernorm", "ln_mlp": "post_attention_layernorm"},
)


def _plain(config: Config, bias: bool) -> Fields:
    inner = config["intermediate_size"] or 4 * config["hidden_size"]
    kind = {"layer_norm": True, "norm_bias": True, "gated": False, "intermediate_size": inner}
    return kind | dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bias)


def _bloom(config: Config) -> Fields:
    alibi = {"rope": NO_ROPE, "alibi_slopes": alibi_slopes(config["num_attention_heads"])}
    return _plain(config, bias=True) | alibi | {"embedding_norm": True, "activation": "gelu_tanh"}


def _falcon(config: Config) -> Fields:
    heads, grouped = config["num_attention_heads"], config["new_decoder_architecture"]
    side_by_side = bool(grouped or config["parallel_attn"])
    one_norm = config["num_ln_in_parallel_attn"] == 1 if grouped else side_by_side
    kv_heads = (config["num_kv_heads"] or heads) if grouped else 1 if config["multi_query"] else heads
    scale = (config["hidden_size"] // heads) ** -0.5
    slopes = tuple(slope * scale for slope in alibi_slopes(heads))  # they are added before the scale
    alibi = {"rope": NO_ROPE, "alibi_slopes": slopes} if config["alibi"] else {}
    return (
        _plain(config, bool(config["bias"]))
        | {"num_kv_heads": kv_heads, "parallel": side_by_side, "shared_norm": one_norm}
        | alibi
    )


def _falcon_from_gguf(meta: Metadata, config: Config) -> Config:
    """llama.cpp knows those whose attention and MLP are side by side, and no ALiBi."""
    norms, kv_heads = 1 + ("blk.0.attn_norm_2.weight" in meta.tensors), config["num_key_value_heads"]
    return {
        "new_decoder_architecture": norms == 2 or kv_heads > 1,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": norms,
    }


FAMILIES = (
    Family(
        model_type="bloom",
        title="BLOOM",
        fields=_bloom,
        defaults=_BLOOM,
        keys=_KEYS,
        only={"apply_residual_connection_post_layernorm": (False,)},
        names=_NAMES,
        gguf=Gguf(architecture="bloom"),
    ),
    Family(
        model_type="falcon",
        title="Falcon (1B, 7B, 11B, 40B, 180B)",
        fields=_falcon,
        defaults=_FALCON,
        keys=_KEYS,
        names=_NAMES,
        gguf=Gguf(
            architecture="falcon",
            config=_falcon_from_gguf,
            parts={"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
        ),
    ),
)
