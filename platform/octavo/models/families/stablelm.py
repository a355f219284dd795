"""StableLM: layer norms, a quarter of each head rotated; in some models attention and MLP side by side."""

from __future__ import annotations

from octavo.models.families.record import Config, Family, Fields, Gguf

_DEFAULTS: Config = {
    "vocab_size": 50_304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25, "use_qkv_bias": False, "use_parallel_residual": False, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip


def _fields(config: Config) -> Fields:
    side_by_side = bool(config["use_parallel_residual"])
    biases = {"qkv_bias": bool(config["use_qkv_bias"]), "out_bias": False, "mlp_bias": False, "norm_bias": True}
    return biases | {"layer_norm": True, "parallel": side_by_side, "shared_norm": side_by_side}


FAMILIES = (
    Family(
        model_type="stablelm",
        title="StableLM",
        fields=_fields,
        defaults=_DEFAULTS,
        keys={"layer_norm_eps": "rms_norm_eps"},
        gguf=Gguf(
            architecture="stablelm",
            config=lambda meta, config: {"use_parallel_residual": "blk.0.ffn_norm.weight" not in meta.tensors},
        ),
    ),
)
