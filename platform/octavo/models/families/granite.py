"""Granite: a Llama with scales of embeddings, attention, branches and logits; with experts too, and beside them one
that every token goes through; Granite 4, most of whose layers are Mamba-2's."""

from __future__ import annotations

import math

from octavo.models.families.llama import LLAMA
from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names, Stack
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata
from octavo.models.recurrent_spec import StateSpace
from octavo.models.spec import NO_ROPE

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


_HYBRID: Config = _EXPERTS | {
    "shared_intermediate_size": 1024, "position_embedding_type": None, "layer_types": None, "mamba_n_heads": 128,
    "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_head": "auto", "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_conv_bias": True, "mamba_proj_bias": False, "time_step_limit": None,
}  # fmt: skip
_MAMBA = {
    "space_x": "mamba.x", "space_b": "mamba.b", "space_c": "mamba.c", "space_z": "mamba.z", "space_dt": "mamba.dt",
    "space_out": "mamba.out_proj", "conv": "mamba.conv1d", "delta_decay.weight": "mamba.A_log",
    "delta_step.weight": "mamba.dt_bias", "delta_skip.weight": "mamba.D", "delta_scale": "mamba.norm",
}  # fmt: skip
_MAMBA_IN = Stack(("space_z", "space_x", "space_b", "space_c", "space_dt"))

_GGUF_PARTS = {part: part.replace("_", "") for part in ("space_x", "space_b", "space_c", "space_z", "space_dt")} | {
    "space_out": "ssm_out", "conv": "ssm_conv1d", "delta_decay.weight": "ssm_a", "delta_step.weight": "ssm_dt.bias",
    "delta_skip.weight": "ssm_d", "delta_scale": "ssm_norm",
}  # fmt: skip
_GGUF_STACKS = {"ssm_in": _MAMBA_IN} | {f"ffn_{part}": Stack((part,)) for part in ("gate", "up", "down")}
"""An MLP is called otherwise where there are no experts beside it."""


def _hybrid(config: Config) -> Fields:
    types = config["layer_types"] or ["mamba"] * config["num_hidden_layers"]
    recurrent = tuple(i for i, kind in enumerate(types) if kind not in ("attention", "full_attention"))
    inner, heads = config["mamba_expand"] * config["hidden_size"], config["mamba_n_heads"]
    space = StateSpace(
        key_heads=config["mamba_n_groups"],
        value_heads=heads,
        key_dim=config["mamba_d_state"],
        value_dim=inner // heads,
        taps=config["mamba_d_conv"],
        bias=bool(config["mamba_proj_bias"]),
        conv_bias=bool(config["mamba_conv_bias"]),
    )
    own: Fields = {"recurrent": recurrent, "recurrence": space if recurrent else None}
    if config["position_embedding_type"] != "rope":
        own["rope"] = NO_ROPE
    if config["num_local_experts"]:
        return _with_experts(config) | own
    return _fields(config) | own | {"intermediate_size": config["shared_intermediate_size"], "mlp_bias": False}


def _from_gguf(meta: Metadata, _config: Config) -> Config:
    return {
        "embedding_multiplier": meta.required("embedding_scale"),
        "attention_multiplier": meta.required("attention.scale"),
        "residual_multiplier": meta.required("residual_scale"),
        "logits_scaling": meta.required("logit_scale"),
    }


def _hybrid_from_gguf(meta: Metadata, config: Config) -> Config:
    """Recurrent layers are those that have a convolution. llama.cpp says of all scaling whether there is rotation."""
    layers, up = range(config["num_hidden_layers"]), "blk.0.ffn_up_shexp.weight"
    if not config.get("num_local_experts"):
        up = "blk.0.ffn_up.weight"
    return _from_gguf(meta, config) | {
        "layer_types": ["mamba" if f"blk.{i}.ssm_conv1d.weight" in meta.tensors else "attention" for i in layers],
        "shared_intermediate_size": meta.tensors[up].shape[0] if up in meta.tensors else 0,
        "position_embedding_type": "nope" if meta.own("rope.scaling.finetuned") is False else "rope",
        "mamba_expand": meta.required("ssm.inner_size") // config["hidden_size"],
        "mamba_n_heads": meta.required("ssm.time_step_rank"),
        "mamba_n_groups": meta.required("ssm.group_count"),
        "mamba_d_state": meta.required("ssm.state_size"),
        "mamba_d_conv": meta.required("ssm.conv_kernel"),
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in meta.tensors),
        "mamba_proj_bias": any(name.endswith("ssm_in.bias") for name in meta.tensors),
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
    Family(
        model_type="granitemoehybrid",
        title="Granite 4",
        fields=_hybrid,
        defaults=_HYBRID,
        keys={"layers_block_type": "layer_types"},
        only={
            "hidden_act": ("silu", "swish"),  # also the convolution's
            "position_embedding_type": (None, "nope", "rope"),
            "time_step_limit": (None, [0.0, math.inf], [0.0, {"__float__": "Infinity"}]),  # as transformers writes it
        },
        names=Names(
            parts={**_NAMES.parts, **_MAMBA},
            stacks={**_NAMES.stacks, "mamba.in_proj": _MAMBA_IN},
            logarithms=("delta_decay",),
        ),
        gguf=Gguf(
            architecture="granitehybrid",
            config=_hybrid_from_gguf,
            interleaved=True,
            parts=GGUF_SHARED_EXPERT | _GGUF_PARTS,
            stacks=_GGUF_STACKS,
        ),
    ),
)
