"""DeepSeek V2 and V3, and models that are one of them by another name: latent attention, grouped experts."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.families import latent
from octavo.models.families.grouped_experts import (
    GROUPED_EXPERTS,
    KEYS,
    PARTS,
    grouped_expert_fields,
    grouped_experts_from_gguf,
)
from octavo.models.families.latent import LATENT, latent_fields, latent_from_gguf
from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Fields, Gguf, Names
from octavo.models.gguf_metadata import Metadata

_V2: Config = GROUPED_EXPERTS | LATENT | {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "num_experts": 64, "n_routed_experts": 64,
    "n_shared_experts": 2, "moe_intermediate_size": 1407, "n_group": None, "topk_group": None, "topk_method": "greedy",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_V3: Config = GROUPED_EXPERTS | LATENT | {
    "vocab_size": 129_280, "hidden_size": 7168, "intermediate_size": 18_432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "max_position_embeddings": 4096, "num_experts": 256, "n_routed_experts": 256,
    "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_YOUTU: Config = LATENT | {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 32,
    "num_attention_heads": 16, "max_position_embeddings": 131_072, "tie_word_embeddings": True, "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}  # fmt: skip
_ABSENT: Config = {
    "routed_scaling_factor": 1.0, "norm_topk_prob": False, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
    "n_shared_experts": 0,
}  # fmt: skip
"""What a GGUF file means by leaving something out."""

_ONLY = latent.ONLY | {"moe_layer_freq": (1,)}
_NAMES = Names(parts=PARTS | latent.PARTS, stacks=latent.STACKS, interleaved=True)
_SIGMOID = 2  # of `expert_gating_func`


def _v2_fields(config: Config) -> Fields:
    own: Fields = {"router_scoring": "softmax", "choice_bias": False, "normalise_experts": False}
    groups = {} if config["topk_method"] == "group_limited_greedy" else {"expert_groups": 0, "kept_groups": 0}
    return grouped_expert_fields(config) | latent_fields(config) | own | groups


def _v3_fields(config: Config) -> Fields:
    return grouped_expert_fields(config) | latent_fields(config)


def _from_gguf(meta: Metadata, config: Config) -> Config:
    """Which of them a file holds, shows in its experts: none, chosen by sigmoids and a bias, or by a softmax."""
    found = latent_from_gguf(meta)
    if not config.get("num_experts"):
        return found | {"model_type": "youtu"}
    found |= _ABSENT | grouped_experts_from_gguf(meta, config)
    scoring = meta.own("expert_gating_func")
    biased = any(name.endswith(".exp_probs_b.bias") for name in meta.tensors)
    if scoring == _SIGMOID or (scoring is None and biased):
        return found | {"model_type": "deepseek_v3"}
    grouped = (found["n_group"] or 0) > 1
    return found | {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy" if grouped else "greedy"}


_GGUF = Gguf(
    architecture="deepseek2",
    config=_from_gguf,
    interleaved=True,
    parts=GGUF_SHARED_EXPERT | latent.GGUF_PARTS,
    stacks=latent.GGUF_STACKS,
)

FAMILIES = (
    Family(
        model_type="deepseek_v2",
        title="DeepSeek V2, V2-Lite, V2.5",
        fields=_v2_fields,
        defaults=_V2,
        keys=KEYS,
        only=_ONLY | {"topk_method": ("greedy", "group_limited_greedy"), "scoring_func": ("softmax",),
                      "norm_topk_prob": (False, None)},
        names=_NAMES,
        gguf=_GGUF,
    ),
    *(
        Family(
            model_type=model_type,
            title=title,
            fields=_v3_fields,
            defaults=_V3,
            keys=KEYS,
            only=_ONLY | {"topk_method": ("noaux_tc",), "scoring_func": ("sigmoid",)},
            names=_NAMES,
            gguf=_GGUF,
        )
        for model_type, title in (("deepseek_v3", "DeepSeek V3, V3.1, R1; Moonlight"), ("kimi_k2", "Kimi K2"))
    ),
    Family(
        model_type="youtu",
        title="Youtu-LLM",
        fields=latent_fields,
        defaults=_YOUTU,
        only=latent.ONLY,
        names=Names(parts=latent.PARTS, stacks=latent.STACKS, interleaved=True),
        gguf=replace(_GGUF, parts=latent.GGUF_PARTS),
    ),
)  # fmt: skip
