"""How checkpoint formats name and store each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_names import ENCODER_NAMES, GGUF_ENCODER_PARTS, plain_encoder_name

if TYPE_CHECKING:
    from octavo.models.weights.layout import Slot  # imports torch, 2 s, which reading names does not need


@dataclass(frozen=True, slots=True)
class Naming:
    """One format's names for one family.

    Attributes:
        layer: prefix of a layer's tensors, with {} for its index.
        parts: part -> name, with {} for an expert's index.
        norm_offset: added to stored norm weights. Gemma's checkpoints store the weight minus 1; GGUF's converter adds
            the 1 back.
        interleaved_rope: rows of q and k alternate between the two halves of a head, because llama.cpp rotates
            neighbouring values. Its converter stores Llama like this (`LlamaModel.permute` in convert_hf_to_gguf.py).
    """

    layer: str
    parts: dict[str, str]
    norm_offset: float = 0.0
    interleaved_rope: bool = False

    def stored_name(self, slot: Slot) -> str:
        """The name of a slot's tensor in the checkpoint."""
        prefix = "" if slot.layer is None else self.layer.format(slot.layer)
        return f"{prefix}{self.parts[slot.part].format(slot.expert)}.{slot.kind}"


def hf_naming(spec: ModelSpec) -> Naming:
    """Hugging Face's names, without the prefixes that `plain_name` removes."""
    if spec.encoder is not None:
        return Naming(*ENCODER_NAMES[spec.family])
    if spec.family == "mpt":
        return Naming("blocks.{}.", MPT_PARTS)
    before_mlp = {"mlp_norm": "post_attention_layernorm"}  # its name where attention has no norm of its own after it
    around_mlp = {
        "post_attention_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
    offset = 1.0 if spec.family.startswith("gemma") else 0.0
    experts = _MIXTRAL_EXPERTS if spec.family == "mixtral" else _QWEN_EXPERTS if spec.num_experts else {}
    norms = around_mlp if spec.post_norms else before_mlp
    return Naming("layers.{}.", HF_PARTS | norms | experts, norm_offset=offset)


def gguf_naming(spec: ModelSpec) -> Naming:
    """GGUF's names."""
    if spec.encoder is not None:
        return Naming("blk.{}.", GGUF_ENCODER_PARTS)
    return Naming("blk.{}.", GGUF_PARTS, interleaved_rope=spec.family in ("llama", "mistral"))


def plain_name(name: str) -> str:
    """A tensor's name without the prefixes of wrapping models: `model.`, `bert.`, ..."""
    name = plain_encoder_name(name)
    for prefix in ("transformer.", "language_model.", "model.", "language_model."):
        name = name.removeprefix(prefix)
    return name


HF_PARTS = {
    "embedding": "embed_tokens",
    "final_norm": "norm",
    "lm_head": "lm_head",
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_MIXTRAL_EXPERTS = {
    "router": "block_sparse_moe.gate",
    "expert_gate": "block_sparse_moe.experts.{}.w1",
    "expert_up": "block_sparse_moe.experts.{}.w3",
    "expert_down": "block_sparse_moe.experts.{}.w2",
}
_QWEN_EXPERTS = {
    "router": "mlp.gate",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
    "gate": "mlp.shared_expert.gate_proj",
    "up": "mlp.shared_expert.up_proj",
    "down": "mlp.shared_expert.down_proj",
    "shared_gate": "mlp.shared_expert_gate",
}
MPT_PARTS = {
    "embedding": "wte",
    "lm_head": "lm_head",
    "final_norm": "norm_f",
    "attention_norm": "norm_1",
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "out": "attn.out_proj",
    "mlp_norm": "norm_2",
    "up": "ffn.up_proj",
    "down": "ffn.down_proj",
}
GGUF_PARTS = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "lm_head": "output",
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "out": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "post_mlp_norm": "post_ffw_norm",
}
