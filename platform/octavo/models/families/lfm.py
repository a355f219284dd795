"""LFM 2: most layers have a gated short convolution in place of attention."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names
from octavo.models.families.settings import expert_fields
from octavo.models.gguf_metadata import Metadata
from octavo.models.recurrent_spec import ShortConv

_LFM2: Config = {
    "vocab_size": 65_536, "hidden_size": 2560, "intermediate_size": 12_288, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 128_000, "rms_norm_eps": 1e-5,
    "rope_theta": 1e6, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "conv_bias": False,
    "conv_L_cache": 3, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True,
    "full_attn_idxs": None, "layer_types": None,
}  # fmt: skip

_PARTS = {
    "final_norm": "embedding_norm", "attention_norm": "operator_norm", "out": "self_attn.out_proj",
    "q_norm": "self_attn.q_layernorm", "k_norm": "self_attn.k_layernorm", "conv_in": "conv.in_proj",
    "conv": "conv.conv", "conv_out": "conv.out_proj", "mlp_norm": "ffn_norm", "gate": "feed_forward.w1",
    "up": "feed_forward.w3", "down": "feed_forward.w2",
}  # fmt: skip

_LFM2_MOE: Config = _LFM2 | {
    "hidden_size": 2048, "intermediate_size": 7168, "block_auto_adjust_ff_dim": False, "moe_intermediate_size": 1792,
    "num_dense_layers": 2, "first_k_dense_replace": 2, "num_experts": 32, "num_local_experts": None,
    "num_experts_per_tok": 4, "use_expert_bias": True, "routed_scaling_factor": 1.0, "norm_topk_prob": True,
}  # fmt: skip

_DENSE = {part: _PARTS[part] for part in ("gate", "up", "down")}
_EXPERTS = {
    "router": "feed_forward.gate", "router.choice_bias": "feed_forward.expert_bias",
    "expert_gate": "feed_forward.experts.{}.w1", "expert_up": "feed_forward.experts.{}.w3",
    "expert_down": "feed_forward.experts.{}.w2",
}  # fmt: skip

_GGUF_PARTS = {
    "final_norm": "token_embd_norm", "conv_in": "shortconv.in_proj", "conv": "shortconv.conv",
    "conv_out": "shortconv.out_proj",
}  # fmt: skip
_KEYS = {"norm_eps": "rms_norm_eps", "block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}


def _settings(config: Config) -> Config:
    """The inner width as it is, and the type of every layer."""
    inner, layers = config["intermediate_size"], config["num_hidden_layers"]
    if config["block_auto_adjust_ff_dim"]:
        inner = int(2 * inner / 3)
        if (factor := config["block_ffn_dim_multiplier"]) is not None:
            step = config["block_multiple_of"]
            inner = -(-int(factor * inner) // step) * step
    full = config["full_attn_idxs"] if config["full_attn_idxs"] is not None else range(layers)
    types = config["layer_types"] or ["full_attention" if i in full else "conv" for i in range(layers)]
    return {"intermediate_size": inner, "block_auto_adjust_ff_dim": False, "layer_types": types}


def _lfm2(config: Config) -> Fields:
    recurrent = tuple(i for i, kind in enumerate(config["layer_types"]) if kind != "full_attention")
    conv = ShortConv(config["hidden_size"], config["conv_L_cache"], bool(config["conv_bias"]))
    own = {"qk_norm": True, "activation": "silu"}  # whatever the config says
    return own | {"recurrent": recurrent, "recurrence": conv if recurrent else None}


def _lfm2_moe(config: Config) -> Fields:
    own = {
        "intermediate_size": config["moe_intermediate_size"],
        "router_scoring": "sigmoid",
        "choice_bias": bool(config["use_expert_bias"]),
        "expert_scale": float(config["routed_scaling_factor"]),
    }
    return _lfm2(config) | expert_fields(config) | own


def _moe_from_gguf(meta: Metadata, config: Config) -> Config:
    return _from_gguf(meta, config) | {
        "first_k_dense_replace": meta.own("leading_dense_block_count") or 0,
        "routed_scaling_factor": meta.own("expert_weights_scale") or 1.0,
        "use_expert_bias": any("exp_probs_b" in name for name in meta.tensors),
    }


def _from_gguf(meta: Metadata, config: Config) -> Config:
    layers = range(config["num_hidden_layers"])
    types = ["conv" if f"blk.{i}.shortconv.conv.weight" in meta.tensors else "full_attention" for i in layers]
    taps = meta.required("shortconv.l_cache")
    return {"layer_types": types, "conv_L_cache": taps, "block_auto_adjust_ff_dim": False}


FAMILIES = (
    Family(
        model_type="lfm2",
        title="LFM 2",
        defaults=_LFM2,
        keys=_KEYS,
        settings=_settings,
        fields=_lfm2,
        names=Names(parts=_PARTS),
        gguf=Gguf(architecture="lfm2", config=_from_gguf, parts=_GGUF_PARTS),
    ),
    Family(
        model_type="lfm2_moe",
        title="LFM 2 with experts",
        defaults=_LFM2_MOE,
        keys=_KEYS | {"num_dense_layers": "first_k_dense_replace"},
        settings=_settings,
        fields=_lfm2_moe,
        names=Names(parts=_PARTS | _EXPERTS, dense=_DENSE),
        gguf=Gguf(architecture="lfm2moe", config=_moe_from_gguf, parts=_GGUF_PARTS),
    ),
)
