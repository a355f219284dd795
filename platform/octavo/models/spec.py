"""`ModelSpec`: a transformer described as data.

One decoder (`decoder.py`) runs every spec; a family (a record in `families`) says how one is filled in. A layer is

    x  = x + post_norm(attention(norm(x)))         post norms only where `post_norms`, first norms where `pre_norms`
    x  = x + post_norm(mlp(norm(x)))               or, where `parallel`, x = x + attention(norm(x)) + mlp(norm(x))

with RMS norms, rotary positions, grouped-query attention and a gated MLP. Variants: layer norms, ALiBi slopes or a
table instead of rotary positions, latent attention (`Latent`), a plain MLP, or a mixture of experts (gated MLPs of
which a router picks some for each token).
Encoders are the same record with an `EncoderSpec`, and run in `encoder.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from octavo.errors import ModelError
from octavo.models.encoder_spec import EncoderSpec, HeadSpec
from octavo.models.recurrent_spec import Recurrence, ShortConv

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2"]


def check_numbers(record: Any) -> None:
    """Raise `ModelError` if a numeric field of a record is not a finite number: a config can contain any JSON value."""
    for field in fields(record):
        value, kind = getattr(record, field.name), str(field.type)
        values = value if kind.startswith("tuple") and isinstance(value, tuple) else (value,)
        for one in values:
            whole = "int" in kind and type(one) is int
            real = "float" in kind and isinstance(one, int | float) and type(one) is not bool and abs(one) < _LARGEST
            other = not {"int", "float"} & set(re.findall(r"\w+", kind)) or (one is None and "None" in kind)
            if not (whole or real or other) or (real and math.isnan(one)):
                shown = str(one)[:40]
                raise ModelError(f"{field.name} is {shown}, which is not {'a whole' if 'int' in kind else 'a'} number")


_LARGEST = 1e30
"""Largest magnitude of a float: products with it still fit float32."""


class Scaling:
    """Base of the scalings below: checks that numbers are finite, and that factors and lengths are above zero."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("factor", "original_max_position", "beta_fast", "beta_slow"):
            if getattr(self, name, 1) <= 0:
                raise ModelError(f"{name} of the rope scaling is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class LinearScaling(Scaling):
    """Every frequency divided by `factor` (position interpolation, Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling(Scaling):
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        Scaling.__post_init__(self)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ModelError(f"rope frequencies from {self.low_freq_factor} to {self.high_freq_factor} are no range")


@dataclass(frozen=True, slots=True)
class YarnScaling(Scaling):
    """Interpolation by parts and a scaled cos and sin (YaRN, Peng et al. 2023)."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncate: bool  # round the ramp's ends to whole dimensions
    attention_factor: float  # multiplies cos and sin


@dataclass(frozen=True, slots=True)
class LongScaling(Scaling):
    """Two divisors per frequency (LongRoPE, Ding et al. 2024). Which ones a model uses depends on the longest sequence
    that it is to run, not on each sequence: keys are cached as they were rotated."""

    short: tuple[float, ...]  # rotary_dim / 2, up to the original length
    long: tuple[float, ...]
    original_max_position: int
    attention_factor: float  # multiplies cos and sin


@dataclass(frozen=True, slots=True)
class FactorScaling(Scaling):
    """One divisor per frequency, as GGUF files store Llama 3's scaling."""

    factors: tuple[float, ...]  # rotary_dim / 2


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongScaling | FactorScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021) in the half-split layout: value i pairs with i + rotary_dim / 2."""

    theta: float
    rotary_dim: int  # leading dimensions of a head that are rotated; even, 0 for none
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.theta <= 0:
            raise ModelError(f"rope_theta is {self.theta}; it must be above 0")
        wanted = self.rotary_dim // 2
        for factors in self._factors():
            if len(factors) != wanted:
                raise ModelError(f"the rope scaling has {len(factors)} factors; it must have {wanted}")

    def _factors(self) -> list[tuple[float, ...]]:
        match self.scaling:
            case FactorScaling(factors):
                return [factors]
            case LongScaling(short, long):
                return [short, long]
        return []


NO_ROPE = Rope(1.0, 0)
"""No rotation."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention over one vector per token, of which every head makes its keys and values (MLA, DeepSeek-AI 2024).

        x             -> latent c = norm(first outputs), and a part k_r that is rotated as it is
        head's key     = [rotated k_r, K c]         value = V c
        head's query   = [rotated q_r, q_c]         of x, or of norm(Q x) where `query_size` says so

    Scores q_c . K c are (K' q_c) . c, and weighted values V (sum of c): K and V multiply a token's query and its result
    once, and are never applied to what is cached. So the model attends like one with a single key-value head: its key
    is the cached record [rotated k_r, c], and its value the same record, whose first values nobody uses. `num_kv_heads`
    is 1, `head_dim` the record's width, and the rotated values come first.

    Attributes:
        size: of c.
        query_size: what queries are first projected to; 0: they come from the hidden state at once.
        content: values of a head's query beside the rotated ones.
        value: values of a head's result.
        norm_eps: of the norms of c and of projected queries.
    """

    size: int
    query_size: int
    content: int
    value: int
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_numbers(self)
        if min(self.size, self.content, self.value) < 1 or self.query_size < 0:
            raise ModelError(
                f"latent attention of {self.size} values, with {self.content} of a query and {self.value} of a result"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One transformer: a decoder unless it has an `encoder`.

    Attributes:
        family: the name it goes by in `families`.
        max_position_embeddings: most tokens of a sequence, prompt and output.
        norm_eps: of every norm.
        windows: per layer, how many tokens a query sees (itself included); None sees all before it. In encoders a query
            sees those that are less than the window away, before and after it; None sees all.
        local_rope: rotary embedding of the layers with a window, if it differs (Gemma 3); None means `rope` everywhere.
        qk_norm: RMS norm of queries and keys before rotation.
        layer_norm: norms subtract the mean first; the norms of queries and keys do not.
        norm_bias: layer norms have biases.
        gated: the MLP's activation is multiplied by a second projection.
        alibi_slopes: per query head, how much a key's score is lowered per position of distance (Press et al. 2022); ()
            for none.
        post_norms: an RMS norm on each branch's output before it is added (Gemma 2 and 3).
        attention_scale: multiplies query-key products.
        attention_softcap, logit_softcap: c * tanh(x / c) on attention scores and on final logits.
        embedding_scale: multiplies token embeddings, not the tied output matrix.
        tied_embeddings: the output matrix is the embedding table.
        intermediate_size: of the MLP, or of each expert.
        dense_layers, dense_size: the layers of a mixture that have an MLP instead, and its inner width.
        num_experts, experts_per_token: number of experts in a layer, and of experts per token; 0 without a mixture.
        normalise_experts: the weights of a token's chosen experts are normalised to add up to 1; otherwise they come
            from the softmax over all experts.
        shared_expert_size: inner width of the shared expert, which every token uses; 0 without one.
        shared_gate: a gate weights it.
        router_scoring: what makes probabilities of the router's scores; a sigmoid looks at each expert alone.
        router_bias, expert_bias: the router's and the experts' matrices have biases.
        choice_bias: something is added to the probabilities for the choice of experts, and not for their weights.
        expert_groups, kept_groups: experts come in groups, of which as many are kept before a token's experts are
            chosen; 0: they do not.
        expert_scale: multiplies the weights of chosen experts.
        swiglu_limit: experts compute `(up + 1) gate sigmoid(1.702 gate)` of clamped values (gpt-oss).
        sinks: each head's weights add up to less than 1, as if there were one more key, of a learned score, whose value
            is 0.
        eos_token_ids: any of these ends a sequence.
        encoder: what makes it an encoder, whose texts are computed whole and leave no keys and values.
        head: what follows pooling; None: nothing does.
        generates: it has logits for a next token. Otherwise there is no output matrix, and `tied_embeddings` is true.
        pre_norms: a norm before each branch; without, the post norms are all that layers have.
        parallel: attention and MLP both start from the layer's input, and their results are added to it together.
        shared_norm: they start from the same norm of it.
        norm_weights: norms have weights, which otherwise are all 1.
        qk_norm_span: what one norm of queries or keys goes over: a head (with one weight for all), or all heads.
        positions: rows of a table of learned positions, which is added to embeddings; 0 without one.
        position_offset: the table's row of the first token.
        embedding_norm: a norm of the embeddings.
        residual_scale: multiplies each branch's output before it is added.
        logit_scale: multiplies logits before `logit_softcap`.
        head_bias: of the output matrix.
        qkv_clip: largest magnitude of queries, keys and values as they come from their matrices.
        unrotated: layers without rotary positions.
        query_growth, query_growth_positions: b and n, where queries at position p are multiplied by
            1 + b log(1 + floor(p / n)) after they are rotated.
        attention_gate: attention's output is multiplied by the sigmoid of a further projection.
        recurrence: what recurrent layers have in place of attention.
        recurrent: these layers.
        latent: what makes its attention latent. Biases of queries, keys and values are then those of the projections
            that come first.

    Raises:
        ModelError: on construction, if sizes contradict each other.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    attention_scale: float
    tied_embeddings: bool
    activation: Activation = "silu"
    local_rope: Rope | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    gated: bool = True
    alibi_slopes: tuple[float, ...] = ()
    post_norms: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 0
    normalise_experts: bool = False
    shared_expert_size: int = 0
    norm_bias: bool = False
    encoder: EncoderSpec | None = None
    head: HeadSpec | None = None
    generates: bool = True
    dense_layers: tuple[int, ...] = ()
    dense_size: int = 0
    router_scoring: Literal["softmax", "sigmoid"] = "softmax"
    router_bias: bool = False
    choice_bias: bool = False
    expert_bias: bool = False
    expert_groups: int = 0
    kept_groups: int = 0
    expert_scale: float = 1.0
    shared_gate: bool = True
    swiglu_limit: float | None = None
    sinks: bool = False
    pre_norms: bool = True
    parallel: bool = False
    shared_norm: bool = False
    norm_weights: bool = True
    qk_norm_span: Literal["head", "heads"] = "head"
    positions: int = 0
    position_offset: int = 0
    embedding_norm: bool = False
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    head_bias: bool = False
    qkv_clip: float | None = None
    unrotated: tuple[int, ...] = ()
    query_growth: float = 0.0
    query_growth_positions: int = 1
    attention_gate: bool = False
    recurrence: Recurrence | None = None
    recurrent: tuple[int, ...] = ()
    latent: Latent | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                 "intermediate_size", "max_position_embeddings")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise ModelError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for rows in (self.vocab_size, self.q_size, max(1, self.num_experts) * self.intermediate_size):
            if rows * self.hidden_size >= 1 << 48:
                raise ModelError(f"a matrix has {rows} x {self.hidden_size} values, which those of no model have")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key-value heads evenly")
        if self.alibi_slopes and len(self.alibi_slopes) != self.num_heads:
            raise ModelError(f"{len(self.alibi_slopes)} ALiBi slopes for {self.num_heads} query heads")
        if any(window is not None and window < 1 for window in self.windows):
            raise ModelError("a sliding window is below 1")
        if len(self.windows) != self.num_layers:
            raise ModelError(f"attention types are given for {len(self.windows)} of {self.num_layers} layers")
        if not min(1, self.num_experts) <= self.experts_per_token <= self.num_experts:
            raise ModelError(f"a token goes through {self.experts_per_token} of {self.num_experts} experts")
        self._check_mixture()
        self._check_recurrence()
        if self.num_experts and (self.activation != "silu" or not self.gated or self.mlp_bias):
            raise ModelError("experts that are not gated SiLU MLPs without biases are not supported")
        if self.head is not None and self.head.layers[0].columns != self.hidden_size:
            raise ModelError(f"the head takes {self.head.layers[0].columns} values, and states have {self.hidden_size}")
        if self.encoder is not None and (self.generates or self.num_experts or self.qk_norm or self.post_norms):
            raise ModelError("encoders that generate, or have experts, q/k norms or post norms, are not supported")
        if self.head_bias and self.tied_embeddings and self.generates:
            raise ModelError("an output matrix that is the embedding table and has a bias is not supported")
        if self.query_growth_positions < 1:
            raise ModelError(f"queries grow every {self.query_growth_positions} positions")
        if not self.pre_norms and (self.parallel or not self.post_norms):
            raise ModelError("layers without any norm are not supported")
        self._check_latent()
        for rope in (self.rope, self.local_rope or self.rope):
            if rope.rotary_dim % 2 or not 0 <= rope.rotary_dim <= self.head_dim:
                raise ModelError(f"rotary positions over {rope.rotary_dim} of {self.head_dim} dimensions per head")

    def _check_latent(self) -> None:
        if (latent := self.latent) is None:
            return
        if self.num_kv_heads != 1 or self.head_dim != latent.size + self.rope.rotary_dim:
            raise ModelError(f"latent attention of {latent.size} values caches no records of {self.head_dim}")
        if not self.rope.rotary_dim:
            raise ModelError("latent attention without rotary positions is not supported")
        others = self.attention_softcap, self.qkv_clip, self.local_rope, any(self.windows)
        if any((*others, self.alibi_slopes, self.sinks, self.qk_norm, self.unrotated)):
            raise ModelError("latent attention with windows, sinks, slopes or norms of heads is not supported")
        if self.qkv_bias and not latent.query_size:
            raise ModelError("latent attention with biases, whose queries are not projected first, is not supported")

    def _check_mixture(self) -> None:
        if self.dense_layers and (self.dense_size < 1 or not self.num_experts):
            raise ModelError(f"layers without experts have an MLP of {self.dense_size} values")
        if not self.expert_groups:
            return
        size, rest = divmod(self.num_experts, self.expert_groups)
        if rest or not 1 <= self.kept_groups <= self.expert_groups or self.kept_groups * size < self.experts_per_token:
            raise ModelError(
                f"{self.experts_per_token} of {self.num_experts} experts cannot come from {self.kept_groups} of "
                f"{self.expert_groups} groups"
            )

    def _check_recurrence(self) -> None:
        known = set(range(self.num_layers))
        if (self.recurrence is None) != (not self.recurrent) or not known >= set(self.recurrent):
            raise ModelError(f"recurrent layers {self.recurrent} are not layers of this model")
        if self.recurrent and not self.attention_layers:
            raise ModelError("models all of whose layers are recurrent are not supported")
        if self.recurrence is not None and self.latent is not None:
            raise ModelError("recurrent layers beside latent attention are not supported")
        if isinstance(self.recurrence, ShortConv) and self.recurrence.channels != self.hidden_size:
            raise ModelError("short convolutions of another width than the model's are not supported")
        if self.encoder is not None and (self.recurrence is not None or self.attention_gate):
            raise ModelError("recurrent layers and gated attention of encoders are not supported")
        if self.attention_gate and self.latent is not None:
            raise ModelError("latent attention with a gate is not supported")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have keys and values."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.recurrent)

    def has_experts(self, layer: int) -> bool:
        """Whether a layer is a mixture."""
        return self.num_experts > 0 and layer not in self.dense_layers

    def mlp_size(self, layer: int) -> int:
        """Inner width of a layer's MLP, or of its shared expert; 0 without either."""
        if not self.num_experts:
            return self.intermediate_size
        return self.dense_size if layer in self.dense_layers else self.shared_expert_size

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def query_head(self) -> int:
        """Rows of one head in the matrix that makes queries."""
        return self.head_dim if self.latent is None else self.latent.content + self.rope.rotary_dim

    @property
    def value_size(self) -> int:
        """Width of all heads' results together."""
        return self.num_heads * (self.head_dim if self.latent is None else self.latent.value)

    @property
    def kv_parts(self) -> int:
        """Tensors of a layer's cache: keys and values, or one that is both."""
        return 2 if self.latent is None else 1

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotary embeddings that the layers use."""
        return tuple(dict.fromkeys(map(self.layer_rope, range(self.num_layers))))

    def layer_rope(self, layer: int) -> Rope:
        """The rotary embedding of one layer."""
        if layer in self.unrotated:
            return NO_ROPE
        if self.local_rope is None or self.windows[layer] is None:
            return self.rope
        return self.local_rope
