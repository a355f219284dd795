"""Granite: a Llama with scales of embeddings, attention, branches and logits; with experts too, and beside them one
that every token goes through."""

from __future__ import annotations

from octavo.models.families.llama import LLAMA
from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names, Stack
from octavo.models.families.settings import expert_fields
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


_EXPERTS: Config = _DEFAULTS | {
    "hidden_size": 4096, "num_experts": None, "num_local_experts": 8, "num_experts_per_tok": 2,
    "shared_intermediate_size": 0,
}  # fmt: skip

_NAMES = Names(
    parts={
        "router": "block_sparse_moe.router.layer",
        "expert_gate": "block_sparse_moe.gate.{}",
        "expert_up": "block_sparse_moe.up.{}",
        "expert_down": "block_sparse_moe.down.{}",
        "gate": "shared_mlp.gate",
        "up": "shared_mlp.up",
        "down": "shared_mlp.output_linear",
    },
    stacks={
        "block_sparse_moe.input_linear": Stack(("expert_gate", "expert_up"), experts=True),
        "block_sparse_moe.output_linear": Stack(("expert_down",), experts=True),
        "shared_mlp.input_linear": Stack(("gate", "up")),
    },
)


def _with_experts(config: Config) -> Fields:
    shared = {"shared_expert_size": config["shared_intermediate_size"], "shared_gate": False}
    return _fields(config) | expert_fields(config) | shared | {"normalise_experts": True, "mlp_bias": False}


def _from_gguf(meta: Metadata, _config: Config) -> Config:
    return {
        "embedding_multiplier": meta.required("embedding_scale"),
        "attention_multiplier": meta.required("attention.scale"),
        "residual_multiplier": meta.required("residual_scale"),
        "logits_scaling": meta.required("logit_scale"),
    }


def _experts_from_gguf(meta: Metadata, config: Config) -> Config:
    shared = config.get("shared_expert_intermediate_size") or 0
    own = {"model_type": "granitemoeshared", "shared_intermediate_size": shared} if shared else {}
    return _from_gguf(meta, config) | own


FAMILIES = (
    Family(
        model_type="granite",
        title="Granite 3",
        fields=_fields,
        defaults=_DEFAULTS,
        gguf=Gguf(architecture="granite", config=_from_gguf, interleaved=True),
    ),
    Family(
        model_type="granitemoe",
        title="Granite 3 with experts",
        fields=_with_experts,
        defaults=_EXPERTS,
        names=_NAMES,
        gguf=Gguf(architecture="granitemoe", config=_experts_from_gguf, interleaved=True),
    ),
    Family(
        model_type="granitemoeshared",
        title="Granite 3 with shared experts",
        fields=_with_experts,
        defaults=_EXPERTS,
        names=_NAMES,
        gguf=Gguf(architecture="granitemoe", config=_from_gguf, interleaved=True, parts=GGUF_SHARED_EXPERT),
    ),
)
