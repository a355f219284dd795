"""OPT: learned positions that begin at row 2, layer norms and a plain MLP."""

from __future__ import annotations

from octavo.errors import ModelError
from octavo.models.families.record import Config, Family, Fields, Names
from octavo.models.spec import NO_ROPE

_DEFAULTS: Config = {
    "vocab_size": 50_272, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 2048, "hidden_act": "relu",
    "enable_bias": True, "word_embed_proj_dim": None, "tie_word_embeddings": True, "bos_token_id": 2,
    "eos_token_id": 2,
}  # fmt: skip
_ONLY = {
    "do_layer_norm_before": (True,),
    "_remove_final_layer_norm": (False,),
    "layer_norm_elementwise_affine": (True,),
}
_PARTS = {
    "final_norm": "final_layer_norm",
    "attention_norm": "self_attn_layer_norm",
    "out": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
}


def _fields(config: Config) -> Fields:
    if config["word_embed_proj_dim"] not in (None, config["hidden_size"]):
        raise ModelError("word_embed_proj_dim differs from hidden_size, which is not supported")
    positions, biases = config["max_position_embeddings"] + 2, ("qkv_bias", "out_bias", "mlp_bias")
    learned = {"positions": positions, "position_offset": 2, "rope": NO_ROPE}
    kind = {"layer_norm": True, "norm_bias": True, "norm_eps": 1e-5, "gated": False}  # whatever the config says
    return learned | kind | dict.fromkeys(biases, bool(config["enable_bias"]))


FAMILIES = (
    Family(
        model_type="opt",
        title="OPT",
        fields=_fields,
        defaults=_DEFAULTS,
        keys={"ffn_dim": "intermediate_size", "activation_function": "hidden_act"},
        only=_ONLY,
        names=Names(parts=_PARTS, prefix="decoder."),
    ),
)
