"""Llama, whose settings and names are the usual ones, and Mistral, which GGUF files do not tell from it."""

from __future__ import annotations

from octavo.errors import ModelError
from octavo.models.families.record import Config, Family, Gguf
from octavo.models.gguf_metadata import Metadata


def _from_gguf(meta: Metadata, config: Config) -> Config:
    rotary_dim = meta.own("rope.dimension_count") or config["head_dim"]
    if rotary_dim != config["head_dim"]:
        raise ModelError(f"rotary positions over {rotary_dim} of {config['head_dim']} dimensions in a llama GGUF")
    if meta.own("expert_count"):
        return {"model_type": "mixtral"}
    return {"model_type": "mistral"} if config.get("sliding_window") else {}


GGUF = Gguf(architecture="llama", config=_from_gguf, interleaved=True)

LLAMA: Config = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MISTRAL: Config = LLAMA | {
    "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    "use_sliding_window": True, "sliding_window": 4096,
}  # fmt: skip

NO_BIASES = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False)

FAMILIES = (
    Family(model_type="llama", title="Llama 2, Llama 3, SmolLM2", defaults=LLAMA, gguf=GGUF),
    Family(
        model_type="mistral",
        title="Mistral",
        defaults=MISTRAL | {"layer_types": None},
        fields=lambda config: NO_BIASES,
        gguf=GGUF,
        outer=("mistral3",),
    ),
)
