"""How Hugging Face's and GGUF's checkpoints of encoders name their tensors."""

from __future__ import annotations

import re

from octavo.models.families.record import Stack

_BERT = {
    "embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_MPNET = _BERT | {
    "relative_bias": "encoder.relative_attention_bias",
    "q": "attention.attn.q",
    "k": "attention.attn.k",
    "v": "attention.attn.v",
    "out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
_DISTILBERT = _BERT | {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}
_MODERNBERT = {
    "embedding": "embeddings.tok_embeddings",
    "embedding_norm": "embeddings.norm",
    "final_norm": "final_norm",
    "attention_norm": "attn_norm",
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "out": "attn.Wo",
    "mlp_norm": "mlp_norm",
    "gate": "mlp.gate",
    "up": "mlp.up",
    "down": "mlp.Wo",
}
_NOMIC = _BERT | {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "attention_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "mlp_norm": "post_mlp_layernorm",
}

ENCODER_NAMES: dict[str, tuple[str, dict[str, str]]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), ("encoder.layer.{}.", _BERT)),
    "mpnet": ("encoder.layer.{}.", _MPNET),
    "distilbert": ("layer.{}.", _DISTILBERT),
    "modernbert": ("layers.{}.", _MODERNBERT),
    "nomic_bert": ("layers.{}.", _NOMIC),
}
"""Family -> prefix of a layer's tensors, with {} for its index, and part -> name."""

ENCODER_STACKS = {"attn.Wqkv": Stack(("q", "k", "v")), "mlp.Wi": Stack(("gate", "up"))}
"""Matrices of several parts, in any of these families."""

GGUF_ENCODER_PARTS = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "type_embedding": "token_types",
    "embedding_norm": "token_embd_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "out": "attn_output",
    "attention_norm": "attn_output_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "mlp_norm": "layer_output_norm",
}

UNUSED_BY_ENCODERS = re.compile(
    r"(embeddings\.(position_ids|token_type_ids)|pooler|cls|lm_head|vocab_(transform|projector|layer_norm)|head|decoder"
    r"|pre_classifier|classifier|.*rotary_emb\.inv_freq)(\.|$)"
)
"""Tensors that are skipped: buffers, heads that guess masked tokens, and poolers that nothing asks for."""

_WRAPPERS = ("bert.", "roberta.", "distilbert.", "mpnet.", "nomic_bert.", "new.")
_OLDER = (
    (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
    # nomic's own code has other names than transformers
    (re.compile(r"^emb_ln\."), "embeddings.LayerNorm."),
    (re.compile(r"^encoder\.(layers\.\d+\.)"), r"\1"),
    (re.compile(r"^(layers\.\d+\.)attn\.out_proj\."), r"\1self_attn.o_proj."),
    (re.compile(r"^(layers\.\d+\.mlp\.)fc11\."), r"\1up_proj."),
    (re.compile(r"^(layers\.\d+\.mlp\.)fc12\."), r"\1gate_proj."),
    (re.compile(r"^(layers\.\d+\.mlp\.)fc2\."), r"\1down_proj."),
    (re.compile(r"^(layers\.\d+\.)norm1\."), r"\1post_attention_layernorm."),
    (re.compile(r"^(layers\.\d+\.)norm2\."), r"\1post_mlp_layernorm."),
)


def plain_encoder_name(name: str) -> str:
    """An encoder's tensor name without the prefix of the model it is wrapped in, spelled as transformers 5 does.

    Decoders have no tensor whose name this changes.
    """
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    for pattern, newer in _OLDER:
        name = pattern.sub(newer, name)
    return name
