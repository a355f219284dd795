"""GPT-2, with learned positions and matrices stored as [in, out]; GPT-J and GPT-NeoX (Pythia), with attention and MLP
side by side."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf, Names, Stack
from octavo.models.spec import NO_ROPE, Rope

GPT2: Config = {
    "vocab_size": 50_257, "hidden_size": 768, "intermediate_size": None, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "gelu_new",
    "tie_word_embeddings": True, "bos_token_id": 50_256, "eos_token_id": 50_256,
}  # fmt: skip
_GPTJ: Config = GPT2 | {
    "vocab_size": 50_400, "hidden_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16,
    "max_position_embeddings": 2048, "rotary_dim": 64, "tie_word_embeddings": False,
}  # fmt: skip
_NEOX: Config = {
    "vocab_size": 50_432, "hidden_size": 6144, "intermediate_size": 24_576, "num_hidden_layers": 44,
    "num_attention_heads": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "gelu",
    "partial_rotary_factor": 0.25, "attention_bias": True, "use_parallel_residual": True, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip

GPT2_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
GPT2_PARTS = {
    "embedding": "wte",
    "position_embedding": "wpe",
    "final_norm": "ln_f",
    "attention_norm": "ln_1",
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_NEOX_PARTS = {
    "embedding": "embed_in",
    "final_norm": "final_layer_norm",
    "out": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
GPT2_ONLY = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False, None),
}


def _plain(config: Config) -> Fields:
    inner = config["intermediate_size"] or 4 * config["hidden_size"]
    return {"layer_norm": True, "norm_bias": True, "gated": False, "mlp_bias": True, "intermediate_size": inner}


def learned_positions(config: Config) -> Fields:
    """Of GPT-2 and models like it."""
    learned = {"positions": config["max_position_embeddings"], "rope": NO_ROPE}
    return _plain(config) | learned | {"qkv_bias": True, "out_bias": True}


def _gptj(config: Config) -> Fields:
    rotated = config["rotary_dim"] or config["hidden_size"] // config["num_attention_heads"]
    side_by_side = {"parallel": True, "shared_norm": True, "head_bias": True}
    return _plain(config) | side_by_side | {"rope": Rope(10_000.0, rotated)}


def _neox(config: Config) -> Fields:
    return _plain(config) | {"parallel": bool(config["use_parallel_residual"])}


FAMILIES = (
    Family(
        model_type="gpt2",
        title="GPT-2",
        fields=learned_positions,
        defaults=GPT2,
        keys=GPT2_KEYS,
        only=GPT2_ONLY,
        names=Names(layer="h.{}.", parts=GPT2_PARTS, stacks={"attn.c_attn": Stack(("q", "k", "v"))}, transposed=True),
        gguf=Gguf(architecture="gpt2"),
    ),
    Family(
        model_type="gptj",
        title="GPT-J",
        fields=_gptj,
        defaults=_GPTJ,
        keys=GPT2_KEYS,
        names=Names(
            layer="h.{}.",
            parts=GPT2_PARTS | {"out": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"},
            interleaved=True,
        ),
    ),
    Family(
        model_type="gpt_neox",
        title="GPT-NeoX, Pythia",
        fields=_neox,
        defaults=_NEOX,
        keys={"layer_norm_eps": "rms_norm_eps", "rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
        names=Names(
            parts=_NEOX_PARTS,
            stacks={"attention.query_key_value": Stack(("q", "k", "v"), grouped=True)},
            renamed={"embed_out": "lm_head"},
            prefix="gpt_neox.",
        ),
        gguf=Gguf(
            architecture="gptneox",
            config=lambda meta, config: {"use_parallel_residual": meta.required("use_parallel_residual")},
        ),
    ),
)
