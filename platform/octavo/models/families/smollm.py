"""SmolLM 3: a Llama in which every fourth layer has no positions."""

from __future__ import annotations

from octavo.errors import ModelError
from octavo.models.families.record import Config, Family, Fields, Gguf

_DEFAULTS: Config = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32_768, "rope_theta": 2e6,
    "tie_word_embeddings": True, "no_rope_layers": None, "no_rope_layer_interval": 4, "layer_types": None,
    "bos_token_id": 128_000, "eos_token_id": 128_001,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    if "sliding_attention" in (config.get("layer_types") or ()):  # which counts, whatever use_sliding_window says
        raise ModelError("layers with a window are not supported in models of type 'smollm3'")
    layers, interval = range(config["num_hidden_layers"]), config["no_rope_layer_interval"]
    rotated = config["no_rope_layers"] or [(layer + 1) % interval for layer in layers]  # 0 where there are none
    return {"unrotated": tuple(layer for layer in layers if not rotated[layer])}


FAMILIES = (
    Family(
        model_type="smollm3",
        title="SmolLM3",
        fields=_fields,
        defaults=_DEFAULTS,
        only={"use_sliding_window": (False,)},
        gguf=Gguf(architecture="smollm3", interleaved=True),
    ),
)
