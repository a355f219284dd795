"""The layout of a model's weights in memory: q, k and v form one matrix, gate and up another. Weights are allocated
once and filled in place.

A tensor-parallel rank has the same layout for its smaller spec, and fills it with some of the stored rows or columns
(`octavo.models.parallel`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo.errors import ConfigError
from octavo.models.parallel import Share
from octavo.models.recurrent_spec import Recurrence, ShortConv
from octavo.models.spec import Latent, ModelSpec
from octavo.models.step_context import StepContext
from octavo.models.weights.bitsandbytes import Int8Matrix, Nf4Matrix
from octavo.models.weights.quantized import Matrix, QuantizedLinear, stacked
from octavo_kernels.fixed_linear import fixed_linear
from octavo_kernels.linear.quantized import QuantizedWeight
from octavo_kernels.moe import moe


@dataclass(slots=True)
class Linear:
    """y = x W^T + b.

    Calls take the step's context, so that a matrix that differs from token to token, an adapter's, can stand in its
    place; this one does not need it.
    """

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    one_order: bool = False  # of summation, whatever the number of rows

    @property
    def nbytes(self) -> int:
        """Of the matrix."""
        return self.weight.nbytes

    def __call__(self, x: Tensor, context: StepContext) -> Tensor:
        """[T, in] of the tokens that `context` describes -> [T, out]."""
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """[R, in] of any rows -> [R, out]."""
        return (fixed_linear if self.one_order else F.linear)(x, self.weight, self.bias)


@dataclass(slots=True)
class Norm:
    """A norm's weight and bias, in float32."""

    weight: Tensor  # [D]
    bias: Tensor | None  # [D]


@dataclass(slots=True)
class Experts:
    """A mixture of E experts: the router, and the experts' matrices stacked by rows."""

    router: Linear  # [E, D]
    gate_up: Tensor | QuantizedWeight  # [E 2 I, D]
    down: Tensor | QuantizedWeight  # [E D, I]
    shared_gate: Linear | None  # [1, D]: weight of the shared expert for a token
    count: int  # E
    gate_up_bias: Tensor | None = None  # [E 2 I]
    down_bias: Tensor | None = None  # [E D]
    choice_bias: Tensor | None = None  # [E] float32
    limit: float | None = None  # of activations, as for `moe`
    one_order: bool = False  # as in `Linear`

    @property
    def nbytes(self) -> int:
        """Of the experts' matrices."""
        return self.gate_up.nbytes + self.down.nbytes

    def __call__(self, x: Tensor, shares: Tensor, chosen: Tensor, context: StepContext) -> Tensor:
        """[T, D] of a step's tokens -> for each the sum of its chosen experts' outputs [T, D].

        Args:
            shares, chosen: [T, K] as from `route`.
            context: of the same tokens.
        """
        biases = None if self.gate_up_bias is None or self.down_bias is None else (self.gate_up_bias, self.down_bias)
        weights = self.gate_up, self.down, self.count
        return moe(x, shares, chosen, *weights, biases=biases, limit=self.limit, batch_invariant=self.one_order)


@dataclass(slots=True)
class Conv:
    """The taps of a short convolution, the oldest first."""

    weight: Tensor  # [C, W]
    bias: Tensor | None  # [C]


@dataclass(slots=True)
class LatentWeights:
    """What latent attention has beside the projections that come first; `octavo.models.latent` computes with it."""

    kv_norm: Tensor  # [size] float32
    k_b: Tensor  # [heads * size, content] a head's query -> what its product with a latent is
    v_b: Tensor  # [heads * value, size] the sum of latents -> a head's result
    q_norm: Tensor | None = None  # [query_size] float32
    q_b: Linear | QuantizedLinear | None = None  # [heads * query_head, query_size]; None: queries come first
    one_order: bool = False  # as in `Linear`

    @property
    def nbytes(self) -> int:
        """Of the heads' matrices."""
        return self.k_b.nbytes + self.v_b.nbytes


@dataclass(slots=True)
class Delta:
    """What a rule has beside its matrices, in float32 (`recurrent_spec.DeltaNet`, `StateSpace`)."""

    decay: Tensor  # [heads], below 0
    step: Tensor  # [heads]
    scale: Tensor  # [value_dim] or, of a state space, [heads * value_dim], of the norm that follows
    skip: Tensor | None = None  # [heads]


@dataclass(slots=True)
class LayerWeights:
    """One layer; the 1 that some checkpoints subtract from norm weights is added back. In a mixture, `gate_up` and
    `down` are the shared expert's, if it has one."""

    attention_norm: Norm | None
    qkv: Linear | QuantizedLinear  # [q_size + 2 kv_size, D]; of latent attention [query_size or queries + head_dim, D]
    out: Linear | QuantizedLinear  # [D, value_size]
    mlp_norm: Norm | None  # None where it is the attention's, too
    gate_up: Linear | QuantizedLinear | None  # [2 I, D]; of an MLP without a gate [I, D]
    down: Linear | QuantizedLinear | None  # [D, I]
    q_norm: Tensor | None  # [head_dim] or [q_size] float32
    k_norm: Tensor | None  # [head_dim] or [kv_size] float32
    post_attention_norm: Norm | None
    post_mlp_norm: Norm | None
    experts: Experts | None = None
    sinks: Tensor | None = None  # [query heads] float32
    conv: Conv | None = None  # of a recurrent layer, whose `qkv` and `out` are the matrices before and after it
    delta: Delta | None = None  # of one with the delta rule
    latent: LatentWeights | None = None


@dataclass(slots=True)
class Weights:
    """A whole model."""

    embedding: Tensor  # [V, D]
    layers: list[LayerWeights]
    final_norm: Norm
    lm_head: Linear | QuantizedLinear  # [V, D]; the embedding itself if they are tied
    position_embedding: Tensor | None = None  # [positions, D] float32
    embedding_norm: Norm | None = None

    @property
    def linears(self) -> list[Linear | QuantizedLinear]:
        """Every matrix but the embedding and the experts'; the head is the first."""
        found: list[Linear | QuantizedLinear | None] = [self.lm_head]
        for layer in self.layers:
            found += [layer.qkv, layer.out, layer.gate_up, layer.down]
            found += [] if layer.latent is None else [layer.latent.q_b]
            if layer.experts is not None:
                found += [layer.experts.router, layer.experts.shared_gate]
        return [linear for linear in found if linear is not None]

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices."""
        tied = isinstance(self.lm_head, Linear) and self.lm_head.weight is self.embedding
        linears = self.linears[1:] if tied else self.linears
        experts = [x.experts for x in self.layers if x.experts is not None]
        latents = [x.latent for x in self.layers if x.latent is not None]
        return sum(x.nbytes for x in [self.embedding, *linears, *experts, *latents])


_TABLES = ("position_embedding", "type_embedding", "relative_bias")


@dataclass(frozen=True, slots=True)
class Slot:
    """The destination of one stored tensor, or of a rank's part of it.

    Attributes:
        part: "q", "attention_norm", "embedding", ...
        kind: "weight" or "bias".
        target: a view of all or some rows of a tensor of `Weights`.
        shape: of the whole stored tensor.
        rows, columns: rows and columns of the stored tensor that go to `target`; None means all.
        expert: index of the expert in a mixture.
    """

    layer: int | None
    part: str
    kind: str
    target: Tensor
    shape: tuple[int, ...]
    rows: range | None = None
    columns: range | None = None
    expert: int | None = None

    @property
    def is_norm(self) -> bool:
        return self.part.endswith("norm") and self.kind == "weight"

    @property
    def is_float32(self) -> bool:
        """Whether it keeps that type in a packed model: all but matrices that are multiplied, and the vocabulary's."""
        return self.is_norm or self.kind.endswith("bias") or self.part in (*_TABLES, "sinks", "conv", *_DELTA)


def allocate(spec: ModelSpec, dtype: torch.dtype, device: torch.device, *, quantized: bool = False) -> Weights:
    """Allocate the weights of `spec`, not yet filled.

    Args:
        dtype: of all weights but the norms.
        quantized: put the matrices of the layers and the head on the meta device; `put_quantized` replaces them later.
    """

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device)

    def inner_matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device="meta" if quantized else device)

    def linear(rows: int, columns: int, bias: bool) -> Linear:
        place = torch.device("meta") if quantized else device
        return new_linear(rows, columns, bias=bias, dtype=dtype, device=device, place=place)

    def norm() -> Norm:
        ones = torch.ones(width, dtype=torch.float32, device=device)
        return Norm(ones, vector(width, spec.norm_bias, torch.float32))

    def heads_norm(size: int) -> Tensor | None:
        return vector(spec.head_dim if spec.qk_norm_span == "head" else size, spec.qk_norm, torch.float32)

    def vector(size: int, wanted: bool, kind: torch.dtype) -> Tensor | None:
        return torch.empty(size, dtype=kind, device=device) if wanted else None

    def table(rows: int) -> Tensor:
        return torch.empty(rows, width, dtype=torch.float32, device=device)

    width, count = spec.hidden_size, spec.num_experts

    def experts() -> Experts:
        return Experts(
            router=Linear(matrix(count, width), vector(count, spec.router_bias, dtype)),
            gate_up=inner_matrix(count * 2 * spec.intermediate_size, width),
            down=inner_matrix(count * width, spec.intermediate_size),
            shared_gate=Linear(matrix(1, width), None) if spec.shared_expert_size and spec.shared_gate else None,
            count=count,
            gate_up_bias=vector(count * 2 * spec.intermediate_size, spec.expert_bias, dtype),
            down_bias=vector(count * width, spec.expert_bias, dtype),
            choice_bias=vector(count, spec.choice_bias, torch.float32),
            limit=spec.swiglu_limit,
        )

    def attention() -> dict[str, Any]:
        return {
            "qkv": linear(sum(_first_parts(spec).values()), width, spec.qkv_bias),
            "out": linear(width, spec.value_size, spec.out_bias),
            "q_norm": heads_norm(spec.q_size),
            "k_norm": heads_norm(spec.kv_size),
            "sinks": vector(spec.num_heads, spec.sinks, torch.float32),
            "latent": None if spec.latent is None else latent(spec.latent),
        }

    def recurrent(kind: Recurrence) -> dict[str, Any]:
        conv = Conv(matrix(kind.channels, kind.taps), vector(kind.channels, kind.conv_bias, dtype))
        in_proj, out = linear(sum(kind.inputs.values()), width, kind.bias), linear(width, kind.output[1], kind.bias)
        found: dict[str, Any] = {"qkv": in_proj, "out": out, "q_norm": None, "k_norm": None, "conv": conv}
        if not isinstance(kind, ShortConv):
            sizes = kind.vectors.items()
            found["delta"] = Delta(**{x: torch.empty(size, dtype=torch.float32, device=device) for x, size in sizes})
        return found

    def latent(x: Latent) -> LatentWeights:
        q_norm = vector(x.query_size, bool(x.query_size), torch.float32)
        return LatentWeights(
            kv_norm=torch.empty(x.size, dtype=torch.float32, device=device),
            k_b=matrix(spec.num_heads * x.size, x.content),
            v_b=matrix(spec.value_size, x.size),
            q_norm=q_norm,
            q_b=linear(spec.num_heads * spec.query_head, x.query_size, False) if x.query_size else None,
        )

    def layer(index: int) -> LayerWeights:
        inner = spec.mlp_size(index)
        mixer = attention() if index not in spec.recurrent or spec.recurrence is None else recurrent(spec.recurrence)
        return LayerWeights(
            **mixer,
            attention_norm=norm() if spec.pre_norms else None,
            mlp_norm=norm() if spec.pre_norms and not spec.shared_norm else None,
            gate_up=linear(2 * inner if spec.gated else inner, width, spec.mlp_bias) if inner else None,
            down=linear(width, inner, spec.mlp_bias) if inner else None,
            post_attention_norm=norm() if spec.post_norms else None,
            post_mlp_norm=norm() if spec.post_norms else None,
            experts=experts() if spec.has_experts(index) else None,
        )

    embedding = matrix(spec.vocab_size, width)
    head = embedding if spec.tied_embeddings else inner_matrix(spec.vocab_size, width)
    return Weights(
        embedding=embedding,
        layers=[layer(i) for i in range(spec.num_layers)],
        final_norm=norm(),
        lm_head=Linear(head, vector(spec.vocab_size, spec.head_bias, dtype)),
        position_embedding=table(spec.positions) if spec.positions else None,
        embedding_norm=norm() if spec.embedding_norm else None,
    )


def _first_parts(spec: ModelSpec) -> dict[str, int]:
    """The rows of a layer's first matrix, by their parts."""
    if (latent := spec.latent) is None:
        gate = {"q_gate": spec.q_size} if spec.attention_gate else {}
        return {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size} | gate
    queries = {"q_a": latent.query_size} if latent.query_size else {"q": spec.num_heads * spec.query_head}
    return queries | {"kv_a": spec.head_dim}


def new_linear(
    rows: int, columns: int, *, bias: bool, dtype: torch.dtype, device: torch.device, place: torch.device
) -> Linear:
    """A layer, not yet filled, with its matrix at `place`."""
    matrix = torch.empty(rows, columns, dtype=dtype, device=place)
    return Linear(matrix, torch.empty(rows, dtype=dtype, device=device) if bias else None)


def slots(weights: Weights, share: Share) -> list[Slot]:
    """The destination of every tensor in a checkpoint of the whole model; `weights` belong to `share.spec`."""
    stored = _places(allocate(share.whole, torch.float32, torch.device("meta")), share.whole)
    return [_cut(mine, whole.shape, share) for mine, whole in zip(_places(weights, share.spec), stored, strict=True)]


def _cut(slot: Slot, shape: tuple[int, ...], share: Share) -> Slot:
    rows, columns = share.part(slot.part, slot.layer)
    return replace(slot, shape=shape, rows=rows, columns=columns if slot.kind == "weight" else None)


def _places(weights: Weights, spec: ModelSpec) -> list[Slot]:
    places = [slot_of(None, "embedding", "weight", weights.embedding)]
    if spec.norm_weights:
        places += norm_slots(None, final_norm=weights.final_norm, embedding_norm=weights.embedding_norm)
    if weights.position_embedding is not None:
        places.append(slot_of(None, "position_embedding", "weight", weights.position_embedding))
    if not spec.tied_embeddings:
        places += linear_slots(None, weights.lm_head, {"lm_head": spec.vocab_size})
    for index, layer in enumerate(weights.layers):
        places += _layer_slots(index, layer, spec)
    return places


def _layer_slots(index: int, layer: LayerWeights, spec: ModelSpec) -> list[Slot]:
    inner = spec.mlp_size(index)
    places = [
        *_mixer_slots(index, layer, spec),
        *linear_slots(index, layer.gate_up, dict.fromkeys(("gate", "up") if spec.gated else ("up",), inner)),
        *linear_slots(index, layer.down, {"down": spec.hidden_size}),
        *_expert_slots(index, layer.experts, spec),
    ]
    if spec.norm_weights:
        norms = ("attention_norm", "mlp_norm", "post_attention_norm", "post_mlp_norm")
        places += norm_slots(index, **{name: getattr(layer, name) for name in norms})
    alone = {"q_norm": layer.q_norm, "k_norm": layer.k_norm, "sinks": layer.sinks}
    return places + [slot_of(index, name, "weight", vector) for name, vector in alone.items() if vector is not None]


def _mixer_slots(index: int, layer: LayerWeights, spec: ModelSpec) -> list[Slot]:
    """Of attention, or of what stands in its place."""
    if spec.recurrence is None or (conv := layer.conv) is None:
        return [
            *linear_slots(index, layer.qkv, _first_parts(spec)),
            *_latent_slots(index, layer.latent, spec),
            *linear_slots(index, layer.out, {"out": spec.hidden_size}),
        ]
    vectors = [] if conv.bias is None else [slot_of(index, "conv", "bias", conv.bias)]
    if (delta := layer.delta) is not None:
        named = {"decay": delta.decay, "step": delta.step, "scale": delta.scale, "skip": delta.skip}
        vectors += [slot_of(index, f"delta_{x}", "weight", vector) for x, vector in named.items() if vector is not None]
    return [
        *linear_slots(index, layer.qkv, spec.recurrence.inputs),
        *linear_slots(index, layer.out, {spec.recurrence.output[0]: spec.hidden_size}),
        slot_of(index, "conv", "weight", conv.weight),
        *vectors,
    ]


def _latent_slots(index: int, latent: LatentWeights | None, spec: ModelSpec) -> list[Slot]:
    if latent is None:
        return []
    places = linear_slots(index, latent.q_b, {"q_b": spec.num_heads * spec.query_head})
    alone = {"q_a_norm": latent.q_norm, "kv_a_norm": latent.kv_norm, "k_b": latent.k_b, "v_b": latent.v_b}
    return places + [slot_of(index, part, "weight", tensor) for part, tensor in alone.items() if tensor is not None]


def _expert_slots(index: int, experts: Experts | None, spec: ModelSpec) -> list[Slot]:
    if experts is None:
        return []
    assert isinstance(experts.gate_up, Tensor)
    assert isinstance(experts.down, Tensor)
    places = linear_slots(index, experts.router, {"router": spec.num_experts})
    places += linear_slots(index, experts.shared_gate, {"shared_gate": 1})
    if experts.choice_bias is not None:
        places.append(slot_of(index, "router", "choice_bias", experts.choice_bias))
    inputs = experts.gate_up.view(2 * spec.num_experts, spec.intermediate_size, spec.hidden_size)
    for expert, down in enumerate(experts.down.view(spec.num_experts, spec.hidden_size, -1)):
        matrices = {"expert_gate": inputs[2 * expert], "expert_up": inputs[2 * expert + 1], "expert_down": down}
        places += [replace(slot_of(index, part, "weight", x), expert=expert) for part, x in matrices.items()]
    return places + _expert_biases(index, experts, spec)


def _expert_biases(index: int, experts: Experts, spec: ModelSpec) -> list[Slot]:
    if experts.gate_up_bias is None or experts.down_bias is None:
        return []
    places: list[Slot] = []
    inputs = experts.gate_up_bias.view(2 * spec.num_experts, spec.intermediate_size)
    for expert, down in enumerate(experts.down_bias.view(spec.num_experts, spec.hidden_size)):
        biases = {"expert_gate": inputs[2 * expert], "expert_up": inputs[2 * expert + 1], "expert_down": down}
        places += [replace(slot_of(index, part, "bias", x), expert=expert) for part, x in biases.items()]
    return places


def keep_one_order(linears: list[Linear | QuantizedLinear]) -> None:
    """From now on, sum these products in an order that has nothing to do with how many rows there are.

    Raises:
        ConfigError: for weights that bitsandbytes multiplies.
    """
    for linear in linears:
        parts = [] if isinstance(linear, Linear) else linear.parts
        if any(isinstance(part, Int8Matrix | Nf4Matrix) for part in parts):
            raise ConfigError("batch_invariant is not for bitsandbytes: use quantization 'int8' or 'int4'")
        linear.one_order = True


_FIRST = ("q", "k", "v", "q_gate", "q_a", "kv_a", "conv_in",
          "delta_q", "delta_k", "delta_v", "delta_z", "delta_b", "delta_a",
          "space_x", "space_b", "space_c", "space_z", "space_dt")  # fmt: skip
"""Parts of what comes before attention, or what stands in its place; a layer has some of them."""

_DELTA = ("delta_decay", "delta_step", "delta_scale", "delta_skip")
"""What delta nets and state spaces have beside matrices and taps."""

_LAST = ("out", "conv_out", "delta_out", "space_out")
"""And of what comes after it."""


PartOfModel = tuple[int | None, str, int | None]
"""Identifies a matrix: layer, part and expert."""


def put_quantized(weights: Weights, parts: dict[PartOfModel, Matrix]) -> None:
    """Replace the matrices of the layers and the head by quantised ones, which are removed from `parts`.

    Raises:
        ModelError: experts of one layer are quantised in different ways.
    """

    def linear(layer: int, old: Linear | QuantizedLinear, *names: str) -> QuantizedLinear:
        found = [parts.pop((layer, name, None)) for name in names if (layer, name, None) in parts]
        return QuantizedLinear.of(found, old.bias)

    if (None, "lm_head", None) in parts:
        weights.lm_head = QuantizedLinear([parts.pop((None, "lm_head", None))], weights.lm_head.bias)
    for i, layer in enumerate(weights.layers):
        layer.qkv, layer.out = linear(i, layer.qkv, *_FIRST), linear(i, layer.out, *_LAST)
        if layer.latent is not None and layer.latent.q_b is not None:
            layer.latent.q_b = linear(i, layer.latent.q_b, "q_b")
        if layer.gate_up is not None and layer.down is not None:
            layer.gate_up, layer.down = linear(i, layer.gate_up, "gate", "up"), linear(i, layer.down, "down")
        if layer.experts is not None:
            count = range(layer.experts.count)
            gate_up = [parts.pop((i, part, expert)) for expert in count for part in ("expert_gate", "expert_up")]
            layer.experts.gate_up = stacked(gate_up, i)
            layer.experts.down = stacked([parts.pop((i, "expert_down", expert)) for expert in count], i)


def linear_slots(index: int | None, linear: Linear | QuantizedLinear | None, rows: dict[str, int]) -> list[Slot]:
    """The slots of one fused matrix, in row order, given each part's rows."""
    if linear is None:
        return []
    assert isinstance(linear, Linear)
    places, start = [], 0
    for part, size in rows.items():
        places.append(slot_of(index, part, "weight", linear.weight[start : start + size]))
        if linear.bias is not None:
            places.append(slot_of(index, part, "bias", linear.bias[start : start + size]))
        start += size
    return places


def norm_slots(index: int | None, **norms: Norm | None) -> list[Slot]:
    """The slots of norms, by their parts; of those that there are."""
    present = [(part, norm) for part, norm in norms.items() if norm is not None]
    places = [slot_of(index, part, "weight", norm.weight) for part, norm in present]
    return places + [slot_of(index, part, "bias", norm.bias) for part, norm in present if norm.bias is not None]


def slot_of(layer: int | None, part: str, kind: str, target: Tensor) -> Slot:
    """The slot of one whole tensor."""
    return Slot(layer, part, kind, target, tuple(target.shape))
