"""MiniCPM 3: latent attention whose halves are rotated together; embeddings, branches and logits are scaled."""

from __future__ import annotations

import math

from octavo.models.families.latent import LATENT, PARTS, STACKS, latent_fields
from octavo.models.families.record import Config, Family, Fields, Names

_MINICPM3: Config = LATENT | {
    "vocab_size": 73_448, "hidden_size": 2560, "intermediate_size": 6400, "num_hidden_layers": 62,
    "num_attention_heads": 40, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": None,
    "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    value = config["v_head_dim"] or hidden // config["num_attention_heads"]
    depth, base = config["scale_depth"] or math.sqrt(layers), config["dim_model_base"] or hidden
    return latent_fields(config | {"v_head_dim": value}) | {
        "embedding_scale": float(config["scale_emb"]),
        "residual_scale": depth / math.sqrt(layers),
        "logit_scale": base / hidden,
    }


FAMILIES = (
    Family(
        model_type="minicpm3",
        title="MiniCPM 3",
        fields=_fields,
        defaults=_MINICPM3,
        names=Names(parts=PARTS, stacks=STACKS),
    ),
)
