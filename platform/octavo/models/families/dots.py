"""dots.llm1: Qwen 3's attention, and experts as DeepSeek V3 has them."""

from __future__ import annotations

from octavo.models.families.grouped_experts import (
    GROUPED_EXPERTS,
    KEYS,
    PARTS,
    grouped_expert_fields,
    grouped_experts_from_gguf,
)
from octavo.models.families.record import GGUF_SHARED_EXPERT, Config, Family, Gguf, Names

_DOTS1: Config = GROUPED_EXPERTS | {
    "vocab_size": 152_064, "hidden_size": 4608, "intermediate_size": 10_944, "num_hidden_layers": 62,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048,
    "use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 62,
}  # fmt: skip

FAMILIES = (
    Family(
        model_type="dots1",
        title="dots.llm1",
        fields=lambda config: grouped_expert_fields(config) | {"qk_norm": True},
        defaults=_DOTS1,
        keys=KEYS,
        names=Names(parts=PARTS),
        gguf=Gguf(architecture="dots1", config=grouped_experts_from_gguf, parts=GGUF_SHARED_EXPERT),
    ),
)
