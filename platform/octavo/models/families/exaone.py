"""EXAONE 4: norms of the branches alone; in the larger models a window on three layers of four, and no positions on the
fourth."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names
from octavo.models.families.settings import unwindowed
from octavo.models.gguf_metadata import Metadata

_DEFAULTS: Config = {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 16_384, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "use_sliding_window": True, "sliding_window": 4096, "sliding_window_pattern": 4, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    unrotated = unwindowed(config) if config["sliding_window"] else ()
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True, "mlp_bias": False}
    return norms | {"unrotated": unrotated}


def _from_gguf(meta: Metadata, config: Config) -> Config:
    return {"sliding_window": config.get("sliding_window")} | meta.window_pattern()


FAMILIES = (
    Family(
        model_type="exaone4",
        title="EXAONE 4",
        fields=_fields,
        defaults=_DEFAULTS,
        names=Names(
            parts={"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
        ),
        gguf=Gguf(architecture="exaone4", config=_from_gguf),
    ),
)
