"""`Family`: all that is known of a family of decoders, in one record.

Configs, tensors and GGUF files are read by what stands here; nothing else names a family. `settings.py` reads what all
configs have in common; a record says how it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.models.gguf_metadata import Metadata

Config = dict[str, Any]
"""A `config.json`, or GGUF metadata translated into one."""

Fields = dict[str, Any]
"""Of a `ModelSpec`."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What one stored matrix (and its bias) holds the rows of.

    Attributes:
        parts: whose rows, in order.
        grouped: for each key-value head the rows of its query heads, of the key and of the value, instead of all
            queries, all keys, all values; for each query head its rows and its gate's; for each key head of a delta net
            what belongs to it.
        alternating: the first row of each part, then the second of each, ...
        experts: it is one of these for each expert.
        transposed: each is stored with its columns first.
    """

    parts: tuple[str, ...]
    grouped: bool = False
    alternating: bool = False
    experts: bool = False
    transposed: bool = False


GATED_STACK = Stack(("gate", "up"))

USUAL_PARTS = {
    "embedding": "embed_tokens",
    "position_embedding": "embed_positions",
    "embedding_norm": "embed_norm",
    "final_norm": "norm",
    "lm_head": "lm_head",
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Part -> what most families' checkpoints call it."""

POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
"""The same where norms follow the branches."""

GGUF_PARTS = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "embedding_norm": "token_embd_norm",
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
    "router": "ffn_gate_inp",
    "router.choice_bias": "exp_probs_b.bias",
    "expert_gate": "ffn_gate_exps.{}",
    "expert_up": "ffn_up_exps.{}",
    "expert_down": "ffn_down_exps.{}",
    "shared_gate": "ffn_gate_inp_shexp",
    "sinks": "attn_sinks",
}
"""What GGUF calls it."""

GGUF_SHARED_EXPERT = {"gate": "ffn_gate_shexp", "up": "ffn_up_shexp", "down": "ffn_down_shexp"}
"""The same of an expert that all tokens go through."""

GGUF_STACKS = {
    "attn_qkv": Stack(("q", "k", "v")),
    "ffn_gate_exps": Stack(("expert_gate",), experts=True),
    "ffn_up_exps": Stack(("expert_up",), experts=True),
    "ffn_gate_up_exps": Stack(("expert_gate", "expert_up"), experts=True),
    "ffn_down_exps": Stack(("expert_down",), experts=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How Hugging Face's checkpoints of a family name and store its tensors.

    Attributes:
        layer: prefix of a layer's tensors, with {} for its index.
        parts: part -> name, with {} for an expert's index; where they differ from `USUAL_PARTS`. Parts of a stack
            need one too, which no tensor has. "part.kind" -> name with its kind, where that differs.
        dense: the same of gate, up and down in layers of a mixture that have no experts.
        stacks: name -> what is stored under it.
        renamed: other name of a part -> the one in `parts`, in checkpoints that have the other.
        transposed: layers' matrices are stored [in, out].
        norm_offset: added to stored norm weights.
        logarithms: parts x that are stored as log(-x).
        interleaved: neighbouring values of a head turn together, and not those of its two halves.
        prefix: of the model within the checkpoint, beside those that are common (`weights/names.py`).
    """

    layer: str = "layers.{}."
    parts: Mapping[str, str] = field(default_factory=dict)
    dense: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False
    norm_offset: float = 0.0
    logarithms: tuple[str, ...] = ()
    interleaved: bool = False
    prefix: str = ""


def _nothing(_meta: Metadata, _config: Config) -> Config:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """How GGUF files hold a family.

    Attributes:
        architecture: as the file names it. Of several families with one architecture the first is taken.
        config: the file's metadata and the config as far as it is known -> what else the family's config says. It may
            name another `model_type`.
        interleaved: as in `Names`. llama.cpp rotates neighbouring values in some architectures; where the checkpoint
            does not, its converter moves rows (`permute` in convert_hf_to_gguf.py).
        parts, stacks: as in `Names`, where they differ from `GGUF_PARTS` and `GGUF_STACKS`.
    """

    architecture: str
    config: Callable[[Metadata, Config], Config] = _nothing
    interleaved: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[str, Stack] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family.

    Attributes:
        model_type: what configs call it.
        title: names of models that people know, for the documentation.
        fields: a config, complete with defaults -> the fields of `ModelSpec` in which it differs from what
            `settings.decoder_fields` makes of it.
        defaults: settings that a config may leave out, as transformers does. A setting that stands here is one that
            the family reads.
        keys: own name of a setting -> the name that `settings.decoder_fields` reads.
        settings: a config, complete with defaults -> settings that follow from it, where it says them in another way.
        only: settings that change what is computed -> the values that are supported.
        gguf: None where GGUF files do not hold it, or llama.cpp does not run it.
        outer: types of configs of which it is the `text_config`.
    """

    model_type: str
    title: str
    fields: Callable[[Config], Fields] = lambda _config: {}
    defaults: Config = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    settings: Callable[[Config], Config] = lambda _config: {}
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    names: Names = Names()
    gguf: Gguf | None = None
    outer: tuple[str, ...] = ()
