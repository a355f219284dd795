"""The tensors of a model by role, computed from its `ModelSpec` without weights.

Notation: D hidden size, V vocabulary, I inner width of the MLP, H query heads, G key-value heads, d head size, E
experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.model_files import reading
from octavo.models.encoder_spec import DenseSpec, EncoderSpec
from octavo.models.families.reading import spec_from_config
from octavo.models.families.record import Config
from octavo.models.recurrent_spec import ShortConv, StatePart
from octavo.models.spec import Latent, ModelSpec
from octavo.models.stored_facts import Stored

Role = Literal["embedding", "head", "linear", "router", "expert", "bias", "norm"]
Cut = Literal["rows", "columns", "kv", "whole"]


@dataclass(frozen=True, slots=True)
class Tensors:
    """A number of equal tensors of a model (`copies`).

    Attributes:
        rows: outputs.
        columns: inputs; 1 for a vector.
        role: what the tensor is for. Quantisation applies to linear layers and experts; norms are float32.
        cut: which part of it a tensor-parallel rank holds; "kv" means rows of key-value heads, of which a rank has at
            least one.
    """

    part: str
    rows: int
    columns: int
    copies: int
    role: Role
    cut: Cut = "whole"

    @property
    def parameters(self) -> int:
        """Values in all copies."""
        return self.rows * self.columns * self.copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's sizes and tensors.

    Attributes:
        max_positions: most tokens of a sequence.
        mlp_values: values per token that one MLP holds at once (gate, up and their product: 3 I).
        windows: per layer, how many tokens a query attends to; None means all before it.
        kv_layers: those with keys and values.
        recurrent_layers: the others, and `state` of each what it carries of a sequence.
        kv_parts: tensors of a layer's cache: keys and values, or one that is both (latent attention).
        position_bytes: bytes of rotary tables per position.
        encoder: its texts are computed whole, all tokens see each other, and no keys and values are kept.
        generates: it has logits for a next token; otherwise vectors and classes are all that it makes.
        dtype: the checkpoint's own type, if its config names it.
        stored_bits: mean bits per weight over all matrices of a GGUF file.
    """

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    mlp_values: int
    tensors: tuple[Tensors, ...]
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    kv_layers: int
    num_experts: int = 1
    experts_per_token: int = 1
    recurrent_layers: int = 0
    state: tuple[StatePart, ...] = ()
    kv_parts: int = 2
    position_bytes: int = 0
    encoder: bool = False
    generates: bool = True
    dtype: str | None = None
    stored_bits: float | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters; tied matrices count once."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def active_parameters(self) -> float:
        """Parameters used for one token; in a mixture of experts fewer than all."""
        idle = 1 - self.experts_per_token / self.num_experts
        return self.parameters - idle * sum(t.parameters for t in self.tensors if t.role == "expert")


def shape_of(config: Config, stored: Stored | None = None) -> Shape:
    """The shape of a Hugging Face config.

    Args:
        stored: the tensors that the config describes, if they are available.

    Raises:
        ModelError: an unknown architecture, or a config that lacks a size; the message names it.
    """
    with reading("the model's config"):
        own = config.get("dtype") or config.get("torch_dtype")
        dtype = str(own) if own else None
        return _of_spec(spec_from_config(config, stored), dtype)


def _of_spec(spec: ModelSpec, dtype: str | None) -> Shape:
    """Per layer (H + 2 G) d D + H d D (or what `_latent` says) + 3 D I (2 D I without a gate) and its norms; with
    experts 3 D I E + D E, and 3 D I' + D for a shared one of width I'; in layers without experts 3 D I" of their own
    width."""
    layers, width, inner = spec.num_layers, spec.hidden_size, spec.intermediate_size
    attention = len(spec.attention_layers)
    at_once = max(inner * max(1, spec.experts_per_token) + spec.shared_expert_size, spec.dense_size)
    ropes = {spec.layer_rope(layer) for layer in range(layers)}
    norm = (2 if spec.norm_bias else 1) * width
    tensors = [
        *_embeddings(spec.vocab_size, width, spec.tied_embeddings, spec.head_bias),
        *(_queries_and_keys(spec) if spec.latent is None else _latent(spec, spec.latent)),
        *_linear("out", width, spec.value_size, attention, "columns", spec.out_bias),
        *_recurrent(spec),
        *(_mixture(spec) if spec.num_experts else _mlp(spec, inner, layers)),
        *([Tensors("norms", norm, 1, _norms(spec), "norm")] if spec.norm_weights else []),
        *([Tensors("sinks", spec.num_heads, 1, attention, "norm", "rows")] if spec.sinks else []),
        *_tables(spec),
        *(part for layer in (spec.head.layers if spec.head else ()) for part in _dense(layer, spec.norm_bias)),
    ]
    if spec.qk_norm:
        weights = 2 * spec.head_dim if spec.qk_norm_span == "head" else spec.q_size + spec.kv_size
        tensors.append(Tensors("qk_norms", weights, 1, attention, "norm"))
    return Shape(
        family=spec.family,
        num_layers=layers,
        hidden_size=width,
        vocab_size=spec.vocab_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_positions=spec.max_position_embeddings,
        mlp_values=(3 if spec.gated else 2) * at_once,
        tensors=tuple(tensors),
        tied_embeddings=spec.tied_embeddings,
        windows=spec.windows,
        kv_layers=attention,
        recurrent_layers=len(spec.recurrent),
        state=() if spec.recurrence is None else spec.recurrence.state,
        num_experts=max(1, spec.num_experts),
        experts_per_token=max(1, spec.experts_per_token),
        kv_parts=spec.kv_parts,
        position_bytes=sum(4 * rope.rotary_dim for rope in ropes),
        encoder=spec.encoder is not None,
        generates=spec.generates,
        dtype=dtype,
    )


def _recurrent(spec: ModelSpec) -> list[Tensors]:
    """What layers have in place of attention, which no rank has a part of."""
    if (kind := spec.recurrence) is None:
        return []
    layers, width = len(spec.recurrent), spec.hidden_size
    return [
        *_linear("first", sum(kind.inputs.values()), width, layers, "whole", kind.bias),
        *_linear("last", width, kind.output[1], layers, "whole", kind.bias),
        Tensors("conv", kind.channels, kind.taps + kind.conv_bias, layers, "bias"),
        *([] if isinstance(kind, ShortConv) else [Tensors("rule", sum(kind.vectors.values()), 1, layers, "norm")]),
    ]


def _queries_and_keys(spec: ModelSpec) -> list[Tensors]:
    width, layers, queries = spec.hidden_size, len(spec.attention_layers), spec.q_size * (1 + spec.attention_gate)
    return [
        *_linear("q", queries, width, layers, "rows", spec.qkv_bias),
        *_linear("kv", 2 * spec.kv_size, width, layers, "kv", spec.qkv_bias),
    ]


def _latent(spec: ModelSpec, latent: Latent) -> list[Tensors]:
    """The same of latent attention. What comes before the heads is not cut, and every rank holds it."""
    layers, width = spec.num_layers, spec.hidden_size
    queries, per_head = spec.num_heads * spec.query_head, spec.num_heads * (latent.content + latent.value)
    first = _linear("q_a", latent.query_size, width, layers, "whole", spec.qkv_bias) if latent.query_size else []
    return [
        *first,
        *_linear("q", queries, latent.query_size or width, layers, "rows"),
        *_linear("kv", spec.head_dim, width, layers, "whole", spec.qkv_bias),
        Tensors("kv_b", per_head, latent.size, layers, "router", "rows"),
        Tensors("latent_norms", latent.query_size + latent.size, 1, layers, "norm"),
    ]


def _norms(spec: ModelSpec) -> int:
    """Norms of the hidden size."""
    layer = spec.pre_norms * (1 if spec.shared_norm else 2) + 2 * spec.post_norms
    if (encoder := spec.encoder) is None:
        return spec.num_layers * layer + 1 + spec.embedding_norm
    return spec.num_layers * layer + encoder.embedding_norm + encoder.has_final_norm - (not encoder.first_norm)


def _tables(spec: ModelSpec) -> list[Tensors]:
    """What is added to embeddings or to attention scores, in float32 as norms are."""
    encoder = spec.encoder or EncoderSpec()
    rows = spec.positions + encoder.positions + encoder.token_types
    tables = [Tensors("positions", rows, spec.hidden_size, 1, "norm")] if rows else []
    biases = [Tensors("relative_bias", encoder.buckets, spec.num_heads, 1, "norm")] if encoder.buckets else []
    return tables + biases


def _dense(layer: DenseSpec, norm_bias: bool) -> list[Tensors]:
    """A layer of the head, in float32; it is small, and runs once a text."""
    vectors = layer.rows * (layer.bias + (layer.norm is not None) * (1 + norm_bias))
    parts = Tensors("dense", layer.rows, layer.columns, 1, "norm"), Tensors("dense.vectors", vectors, 1, 1, "norm")
    return [part for part in parts if part.rows]


def _mlp(spec: ModelSpec, inner: int, layers: int) -> list[Tensors]:
    width = spec.hidden_size
    return [
        *_linear("gate_up", 2 * inner if spec.gated else inner, width, layers, "rows", spec.mlp_bias),
        *_linear("down", width, inner, layers, "columns", spec.mlp_bias),
    ]


def _mixture(spec: ModelSpec) -> list[Tensors]:
    """Routers and gates stay unquantised; every rank has a part of every expert."""
    width, dense = spec.hidden_size, len(spec.dense_layers)
    layers = spec.num_layers - dense
    copies = layers * spec.num_experts
    shared = [*_mlp(spec, spec.shared_expert_size, layers)]
    gates = [Tensors("shared_gate", 1, width, layers, "router")] if spec.shared_gate else []
    return [
        Tensors("router", spec.num_experts, width, layers, "router"),
        Tensors("gate_up", 2 * spec.intermediate_size, width, copies, "expert", "rows"),
        Tensors("down", width, spec.intermediate_size, copies, "expert", "columns"),
        *(shared + gates if spec.shared_expert_size else []),
        *(_mlp(spec, spec.dense_size, dense) if dense else []),
        *_vectors(spec, layers),
    ]


def _vectors(spec: ModelSpec, layers: int) -> list[Tensors]:
    """Biases of a mixture's matrices, and what is added to choose experts."""
    copies = layers * spec.num_experts
    biases = [
        Tensors("gate_up.bias", 2 * spec.intermediate_size, 1, copies, "bias", "rows"),
        Tensors("down.bias", spec.hidden_size, 1, copies, "bias"),
    ]
    return [
        *(biases if spec.expert_bias else []),
        *([Tensors("router.bias", spec.num_experts, 1, layers, "bias")] if spec.router_bias else []),
        *([Tensors("choice_bias", spec.num_experts, 1, layers, "norm")] if spec.choice_bias else []),
    ]


def _embeddings(vocab: int, width: int, tied: bool, bias: bool) -> list[Tensors]:
    table = Tensors("embedding", vocab, width, 1, "embedding")
    biases = [Tensors("head.bias", vocab, 1, 1, "bias", "rows")] if bias else []
    return [table] if tied else [table, Tensors("head", vocab, width, 1, "head", "rows"), *biases]


def _linear(part: str, rows: int, columns: int, copies: int, cut: Cut, bias: bool = False) -> list[Tensors]:
    """A linear layer. Its bias is cut with its rows; if the columns are cut, one rank adds the whole bias."""
    weight = Tensors(part, rows, columns, copies, "linear", cut)
    whole: Cut = "whole" if cut == "columns" else cut
    return [weight, Tensors(f"{part}.bias", rows, 1, copies, "bias", whole)] if bias else [weight]
