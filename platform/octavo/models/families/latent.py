"""Latent attention as DeepSeek V2 and V3 have it (`octavo.models.spec.Latent`), and what else is theirs alone."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.families.record import Config, Fields, Stack
from octavo.models.families.rope_settings import global_rope, score_factor
from octavo.models.gguf_metadata import Metadata
from octavo.models.spec import Latent

LATENT: Config = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
"""The settings that are read here."""

ONLY = {"rope_interleave": (True,)}

PARTS = {
    "q_a": "self_attn.q_a_proj",
    "q_a_norm": "self_attn.q_a_layernorm",
    "q_b": "self_attn.q_b_proj",
    "kv_a": "self_attn.kv_a_proj_with_mqa",
    "kv_a_norm": "self_attn.kv_a_layernorm",
    "k_b": "self_attn.k_b_proj",
    "v_b": "self_attn.v_b_proj",
}
"""What checkpoints call its matrices; the last two stand in one."""

STACKS = {"self_attn.kv_b_proj": Stack(("k_b", "v_b"), grouped=True)}

GGUF_PARTS = {
    "q_a": "attn_q_a",
    "q_a_norm": "attn_q_a_norm",
    "q_b": "attn_q_b",
    "kv_a": "attn_kv_a_mqa",
    "kv_a_norm": "attn_kv_a_norm",
    "k_b": "attn_k_b",
    "v_b": "attn_v_b",
}
"""What GGUF calls them: the last two apart, each head's keys transposed; files of before April 2025 have a stack."""

GGUF_STACKS = {"attn_kv_b": Stack(("k_b", "v_b"), grouped=True)}


def latent_fields(config: Config) -> Fields:
    """Of a complete config."""
    rotated, content = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    latent = Latent(config["kv_lora_rank"], config["q_lora_rank"] or 0, content, config["v_head_dim"])
    return {
        "latent": latent,
        "num_kv_heads": 1,
        "head_dim": latent.size + rotated,
        "rope": replace(global_rope(config, rotated), rotary_dim=rotated),
        "local_rope": None,
        "attention_scale": (content + rotated) ** -0.5 * score_factor(config),
    }


def latent_from_gguf(meta: Metadata) -> Config:
    """The settings of a GGUF file, whose own lengths of keys and values are those of the cached record."""
    rotated = meta.required("rope.dimension_count")
    keys, values = (
        meta.own(f"attention.{kind}_length_mla") or meta.required(f"attention.{kind}_length")
        for kind in ("key", "value")
    )
    return {
        "kv_lora_rank": meta.required("attention.kv_lora_rank"),
        "q_lora_rank": meta.own("attention.q_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": keys - rotated,
        "v_head_dim": values,
    }
