"""Granite: a Llama with scales of embeddings, attention, branches and logits."""

from __future__ import annotations

from octavo.models.families.llama import LLAMA
from octavo.models.families.record import Config, Family, Fields, Gguf
from octavo.models.gguf_metadata import Metadata

_DEFAULTS: Config = LLAMA | {
    "embedding_multiplier": 1.0, "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    return {
        "embedding_scale": float(config["embedding_multiplier"]),
        "attention_scale": float(config["attention_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": 1 / config["logits_scaling"],
    }


def _from_gguf(meta: Metadata, _config: Config) -> Config:
    return {
        "embedding_multiplier": meta.required("embedding_scale"),
        "attention_multiplier": meta.required("attention.scale"),
        "residual_multiplier": meta.required("residual_scale"),
        "logits_scaling": meta.required("logit_scale"),
    }


FAMILIES = (
    Family(
        model_type="granite",
        title="Granite 3",
        fields=_fields,
        defaults=_DEFAULTS,
        gguf=Gguf(architecture="granite", config=_from_gguf, interleaved=True),
    ),
)
