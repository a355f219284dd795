"""Command: attention and MLP side by side after one layer norm, scaled logits; in Command A and R7B a window on three
layers of four, and no positions on the fourth."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names
from octavo.models.families.settings import unwindowed
from octavo.models.gguf_metadata import Metadata

_COHERE: Config = {
    "vocab_size": 256_000, "hidden_size": 8192, "intermediate_size": 22_528, "num_hidden_layers": 40,
    "num_attention_heads": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
    "logit_scale": 0.0625, "tie_word_embeddings": True, "bos_token_id": 5, "eos_token_id": 255_001,
}  # fmt: skip
_COHERE2: Config = _COHERE | {
    "rope_theta": 10_000.0, "use_sliding_window": True, "sliding_window": 4096, "sliding_window_pattern": 4,
}  # fmt: skip


def _cohere(config: Config) -> Fields:
    kind = {"layer_norm": True, "parallel": True, "shared_norm": True, "mlp_bias": False}
    return kind | {"logit_scale": float(config["logit_scale"] or 1.0)}


def _cohere2(config: Config) -> Fields:
    return _cohere(config) | {"unrotated": unwindowed(config)}


def _from_gguf(meta: Metadata, _config: Config) -> Config:
    return {"logit_scale": meta.required("logit_scale")} | meta.window_pattern()


_KEYS = {"layer_norm_eps": "rms_norm_eps"}

FAMILIES = (
    Family(
        model_type="cohere",
        title="Command R, Aya 23",
        fields=_cohere,
        defaults=_COHERE,
        keys=_KEYS,
        names=Names(interleaved=True),
        gguf=Gguf(architecture="command-r", config=_from_gguf, interleaved=True),
    ),
    Family(
        model_type="cohere2",
        title="Command A, Command R7B",
        fields=_cohere2,
        defaults=_COHERE2,
        keys=_KEYS,
        names=Names(interleaved=True),
        gguf=Gguf(architecture="cohere2", config=_from_gguf, interleaved=True),
    ),
)
