"""`NativeDecoder`: a whole step of a decoder in one native call (`cpu.cpp`).

There is no reference in this folder: `octavo.models.decoder` runs the same models with the other ops, and the tests
compare the two.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from octavo_kernels.linear import PackedWeight
from octavo_kernels.linear.formats import CODES, Array, Precision
from octavo_kernels.lora.packed import Kind, PackedAdapter, kind_of
from octavo_kernels.native.library import Library
from octavo_kernels.native.memory import untouched

if TYPE_CHECKING:
    from torch import Tensor

Type = Literal["float32", "bfloat16", "int8"]
"""Types of stored keys and values."""

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2"]

ACTIVATIONS = get_args(Activation)
"""By their numbers in the C interface (`Gate` in activation/cpu.h)."""

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

CELL = 16
"""Positions in a cell of the cache; a block is a whole number of cells."""

MAX_HEAD_DIM = 1024

_NO_WINDOW = 1 << 40


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """y = x W^T + b."""

    weight: PackedWeight
    bias: Float32 | None = None  # [n]

    def words(self) -> list[int]:
        """The words of `struct Matrix` in records.h."""
        weight = self.weight
        return [CODES[weight.format], weight.n, weight.k, weight.data.ctypes.data, _address(self.bias)]


@dataclass(frozen=True, slots=True)
class PackedExpert:
    """One gated MLP of a mixture."""

    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear

    @property
    def weights(self) -> list[PackedWeight]:
        """Its matrices."""
        return [self.gate.weight, self.up.weight, self.down.weight]


@dataclass(frozen=True, slots=True)
class PackedMixture:
    """A router and the experts that it chooses from."""

    router: PackedLinear  # [experts, hidden]
    experts: list[PackedExpert]
    experts_per_token: int
    scoring: Literal["softmax", "sigmoid"]
    normalise: bool  # a token's shares add up to 1, before they are scaled
    numbers: Float32  # [2] what multiplies the shares, and what bounds the activations (0: nothing)
    groups: int  # of experts, of which `kept_groups` are kept before experts are chosen; 0: no such choice
    kept_groups: int
    choice_bias: Float32 | None  # [experts] added to the scores for the choice alone
    shared_gate: PackedLinear | None  # [1, hidden] whose sigmoid is the shared expert's share; None: it is 1

    def words(self) -> list[int]:
        """The words of `struct Mixture` in mixture.h."""
        matrices = [part for expert in self.experts for part in (expert.gate, expert.up, expert.down)]
        return [
            *(len(self.experts), self.experts_per_token, self.scoring == "sigmoid", self.normalise),
            *(self.groups, self.kept_groups, _address(self.numbers), _address(self.choice_bias)),
            *self.router.words(),
            *(self.shared_gate.words() if self.shared_gate else [0] * 5),
            *(word for matrix in matrices for word in matrix.words()),
        ]


@dataclass(frozen=True, slots=True)
class PackedLatent:
    """What latent attention has beside the matrices that come first (`octavo.models.spec.Latent`)."""

    query_size: int  # what queries are first projected to; 0: they are not
    content: int  # values of a head's query that are not rotated
    value: int  # values of a head's result, a multiple of 16
    q_b: PackedLinear | None  # [heads * (content + rotated), query_size]
    k_b: PackedLinear  # [heads * size, content], `size` of a latent a multiple of 16
    v_b: PackedLinear  # [heads * value, size]
    q_norm: Float32 | None  # [query_size]
    kv_norm: Float32  # [size]
    eps: Float32  # [1] of these norms

    def words(self) -> list[int]:
        """The words of `struct Latent` in latent.h."""
        return [
            *(len(self.kv_norm), self.query_size, self.content, self.value),
            *(self.q_b.words() if self.q_b else [0] * 5),
            *(*self.k_b.words(), *self.v_b.words()),
            *map(_address, (self.q_norm, self.kv_norm, self.eps)),
        ]


@dataclass(frozen=True, slots=True)
class PackedRule:
    """What a gated delta net or a state space has behind its convolution (`delta_net.h`)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    tiled: bool  # value head h has key head h % key_heads, and not one in a row with others
    erases: bool  # a delta net, and not a state space
    decay: Float32  # [value_heads], below 0
    step: Float32  # [value_heads]
    scale: Float32  # [value_dim], of the norm that follows; of a state space [value_heads * value_dim]
    skip: Float32 | None = None  # [value_heads], of a state space

    @property
    def state_floats(self) -> int:
        """Values of one sequence's state."""
        return self.value_heads * self.key_dim * self.value_dim

    def words(self) -> list[int]:
        """The words of `struct Rule` in delta_net.h."""
        sizes = self.key_heads, self.value_heads, self.key_dim, self.value_dim
        vectors = self.decay, self.step, self.scale, self.skip
        return [*sizes, self.tiled, self.erases, *map(_address, vectors)]


@dataclass(frozen=True, slots=True)
class PackedRecurrent:
    """What a layer has in place of attention: a short convolution, before which some of the layer's matrices and after
    which its out stand (`recurrent.h`)."""

    weight: Float32  # [taps, channels], the oldest first
    bias: Float32 | None  # [channels]
    rule: PackedRule | None = None  # None: a gate follows, and q comes first

    @property
    def state_floats(self) -> int:
        """Values of one sequence's state."""
        taps, channels = self.weight.shape
        return int((taps - 1) * channels) + (self.rule.state_floats if self.rule else 0)

    def words(self, states: int, stride: int, rule: Int64 | None) -> list[int]:
        """The words of `struct Recurrent` in recurrent.h."""
        following = 0 if rule is None else rule.ctypes.data
        return [*self.weight.shape, _address(self.weight), _address(self.bias), states, stride, following]


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """One layer; norms, biases and the rotary table are float32. With a mixture, gate, up and down are the shared
    expert's, if it has one. With latent attention, `q` makes queries or what they are projected to, and `k` records."""

    q: PackedLinear
    k: PackedLinear | None  # None before a short convolution alone
    v: PackedLinear | None  # the same, and with latent attention
    out: PackedLinear
    gate: PackedLinear | None  # None for an MLP without a gate
    up: PackedLinear | None  # None where only a mixture's experts follow
    down: PackedLinear | None
    attention_norm: Float32 | None  # [hidden]
    mlp_norm: Float32 | None  # [hidden]
    q_norm: Float32 | None  # [head_dim] or, with `wide_norms`, [query_heads * head_dim]
    k_norm: Float32 | None  # the same of keys
    post_attention_norm: Float32 | None  # [hidden]
    post_mlp_norm: Float32 | None  # [hidden]
    rotary: Float32  # [positions, rotary_dim], cos then sin
    window: int | None  # positions that a query attends to; None means all
    mixture: PackedMixture | None = None
    sinks: Float32 | None = None  # [query_heads]
    attention_norm_bias: Float32 | None = None
    mlp_norm_bias: Float32 | None = None
    latent: PackedLatent | None = None
    recurrent: PackedRecurrent | None = None
    z: PackedLinear | None = None  # of attention or a delta net: what gates its result
    b: PackedLinear | None = None  # [value_heads, hidden], of a delta net
    a: PackedLinear | None = None  # the same

    def words(
        self,
        k_cache: int,
        v_cache: int,
        mixture: Int64 | None,
        latent: Int64 | None,
        recurrent: Int64 | None,
        group: int,
        plan: int,
    ) -> list[int]:
        """The words of `struct Layer` in records.h, with those of its mixture and of what it has for attention."""
        matrices = (self.q, self.k, self.v, self.out, self.gate, self.up, self.down)
        norms = (self.attention_norm, self.mlp_norm, self.q_norm, self.k_norm, self.post_attention_norm,
                 self.post_mlp_norm)  # fmt: skip
        return [
            *(word for matrix in matrices for word in (matrix.words() if matrix else [0] * 5)),
            *map(_address, norms),
            *(_address(self.rotary), self.rotary.shape[1], self.window or _NO_WINDOW),
            *(k_cache, v_cache, 0 if mixture is None else mixture.ctypes.data, _address(self.sinks)),
            *(_address(self.attention_norm_bias), _address(self.mlp_norm_bias)),
            0 if latent is None else latent.ctypes.data,
            *(0 if recurrent is None else recurrent.ctypes.data, group, plan),
            *(word for matrix in (self.z, self.b, self.a) for word in (matrix.words() if matrix else [0] * 5)),
        ]

    @property
    def linears(self) -> list[PackedLinear]:
        """Its matrices, but for those of experts."""
        found = [self.q, self.k, self.v, self.z, self.b, self.a, self.out, self.gate, self.up, self.down]
        if self.mixture is not None:
            found += [self.mixture.router, self.mixture.shared_gate]
        if self.latent is not None:
            found += [self.latent.q_b, self.latent.k_b, self.latent.v_b]
        return [linear for linear in found if linear is not None]


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A model's weights and settings for the native decoder."""

    embedding: PackedWeight  # [vocab, hidden]
    head: PackedLinear  # [vocab, hidden]
    final_norm: Float32
    layers: list[PackedLayer]
    query_heads: int
    kv_heads: int
    head_dim: int
    activation: Activation
    layer_norm: bool  # norms subtract the mean first, except those of queries and keys
    alibi_slopes: Float32 | None  # [query_heads]
    norm_eps: float
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    embedding_scale: float
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    qkv_clip: float | None = None
    parallel: bool = False  # attention and MLP both start from a layer's input
    wide_norms: bool = False  # norms of queries and keys go over all heads
    final_norm_bias: Float32 | None = None
    embedding_norm: Float32 | None = None
    embedding_norm_bias: Float32 | None = None
    positions: Float32 | None = None  # [positions, hidden], the first of them for the first token
    query_scales: Float32 | None = None  # [positions], of queries once they are rotated

    @property
    def matrices(self) -> list[PackedWeight]:
        """Every matrix that multiplies a token; the embedding only if it is also the head."""
        return [*(linear.weight for layer in self.layers for linear in layer.linears), *self._experts, self.head.weight]

    @property
    def _experts(self) -> list[PackedWeight]:
        mixtures = [layer.mixture for layer in self.layers if layer.mixture is not None]
        return [weight for mixture in mixtures for expert in mixture.experts for weight in expert.weights]

    def adapter_kinds(self, precision: Precision) -> list[tuple[Kind, ...]]:
        """What an adapter is kept in at each of a layer's `SITES`: the input is packed as that, too."""
        return [
            tuple(_kind(part, precision) for part in (each.q, each.out, each.up, each.down)) for each in self.layers
        ]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a step of one token reads; one of more tokens reads more only of a mixture's
        experts."""
        idle = 0
        for mixture in [layer.mixture for layer in self.layers if layer.mixture is not None]:
            one = sum(weight.data.nbytes for weight in mixture.experts[0].weights)
            idle += (len(mixture.experts) - mixture.experts_per_token) * one
        return sum(weight.data.nbytes for weight in self.matrices) - idle

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices, the embedding included."""
        untied = self.embedding.data.nbytes if self.embedding is not self.head.weight else 0
        return sum(weight.data.nbytes for weight in self.matrices) + untied

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales included, per weight of the matrices."""
        matrices = self.matrices
        return 8 * sum(weight.data.nbytes for weight in matrices) / sum(weight.n * weight.k for weight in matrices)

    def words(self, precision: Precision, kv: PackedKV) -> list[int]:
        """The words of `struct Model` in records.h."""
        gate, eight_bits = ACTIVATIONS.index(self.activation), kv.dtype == "int8"
        bf16 = kv.dtype == "bfloat16" or (eight_bits and precision is Precision.FAST)
        hidden, inner = self.embedding.k, max(layer.up.weight.n if layer.up else 0 for layer in self.layers)
        return [
            *(hidden, self.query_heads, self.kv_heads, self.head_dim, inner, self.embedding.n),
            *(gate, precision, bf16, eight_bits, kv.block_size, kv.block_bytes, len(self.layers), self.layer_norm),
            *(*PackedLinear(self.embedding).words(), *self.head.words()),
            *(_address(self.final_norm), _address(self.alibi_slopes), self.parallel, self.wide_norms),
            *map(_address, (self.final_norm_bias, self.embedding_norm, self.embedding_norm_bias, self.positions)),
            _address(self.query_scales),
        ]

    def numbers(self) -> list[float]:
        """The words of `struct Numbers` in records.h."""
        return [self.norm_eps, self.attention_scale, self.attention_softcap or 0, self.logit_softcap or 0,
                self.embedding_scale, self.residual_scale, self.logit_scale, self.qkv_clip or 0]  # fmt: skip


class PackedKV:
    """Keys and values of all layers in cells of 16 positions (`paged_attention/cpu.h`).

    Args:
        dtype: float32, bfloat16 or int8 (codes of 8 bits with a scale per position and head, `kv_store.reference`).
        block_size: positions per block, a multiple of 16.
        parts: 1 where a key is its value, which is stored once (latent attention).

    Raises:
        ValueError: another type or block size.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: Type,
        parts: int = 2,
    ) -> None:
        if dtype not in _BYTES or block_size % CELL:
            raise ValueError(
                f"keys and values are float32, bfloat16 or int8 in blocks of 16 n, got {dtype} and {block_size}"
            )
        if head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim is {head_dim}; it must be at most {MAX_HEAD_DIM}")
        self.dtype = dtype
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.block_bytes = block_bytes(num_layers, block_size, kv_heads, head_dim, dtype, parts)
        self._layer_bytes, self._parts = self.block_bytes // num_layers, parts
        # a block holds all layers, so that the used blocks fill whole huge pages
        self._data = untouched(num_blocks * self.block_bytes).reshape(num_blocks, self.block_bytes)

    def addresses(self, layer: int) -> tuple[int, int]:
        """Addresses of a layer's keys and values in block 0."""
        keys = self._data.ctypes.data + layer * self._layer_bytes
        return keys, keys + self._layer_bytes // 2 * (self._parts - 1)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks (source, target) in all layers; every source is read before any target is written."""
        if pairs:
            sources, targets = zip(*pairs, strict=True)
            self._data[list(targets)] = self._data[list(sources)]

    def read(self, blocks: Sequence[int]) -> Array:
        """A copy of blocks' bytes, [n, block_bytes]."""
        return self._data[np.asarray(blocks, np.int64)]

    def write(self, blocks: Sequence[int], data: Array) -> None:
        """Put bytes that `read` gave, of a cache of the same shape and type, into blocks."""
        self._data[np.asarray(blocks, np.int64)] = data


class PackedStates:
    """States of recurrent layers, in float32.

    Args:
        model: whose.
        count: of sequences.
    """

    def __init__(self, model: PackedModel, count: int) -> None:
        sizes = [0 if layer.recurrent is None else layer.recurrent.state_floats for layer in model.layers]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self.stride: int = self._starts[-1]
        self._data = untouched(4 * count * self.stride).view(np.float32)

    def address(self, layer: int) -> int:
        """Of a layer's in the first state."""
        start: int = self._starts[layer]
        return self._data.ctypes.data + 4 * start


def _kind(linear: PackedLinear | None, precision: Precision) -> Kind:
    """What an adapter's part is kept in."""
    return Kind.FLOAT32 if linear is None else kind_of(linear.weight.format, precision)


def block_bytes(num_layers: int, block_size: int, kv_heads: int, head_dim: int, dtype: Type, parts: int = 2) -> int:
    """Bytes of K and V of one block over all layers, or of what is both; heads are padded to a multiple of 16 values.

    A key or value of int8 has a float32 scale beside it.
    """
    head = -(-head_dim // CELL) * CELL * _BYTES[dtype] + 4 * (dtype == "int8")
    return parts * num_layers * block_size * kv_heads * head


@dataclass(frozen=True, slots=True)
class Ranks:
    """How one rank's results are combined with those of the other ranks, which are other processes: a step waits for
    them while it holds the threads of its own, which another rank here would wait for.

    Attributes:
        first_token: token of the first row of this rank's part of the embedding and the head.
        sum: function that replaces float32 values by their sum over all ranks.
    """

    first_token: int
    sum: Callable[[Tensor], object]


class StepGaveWay(Exception):
    """A step ended before its last layer, because somebody asked it to."""


_SUM = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)


class NativeDecoder:
    """Runs steps of one model over one cache.

    Args:
        library: the native library.
        model: its weights, which stay referenced.
        kv: the cache.
        precision: what products do with their input.
        ranks: set if the model is one rank's share.
        states: of recurrent layers; without, none are kept.
        groups: of each layer that attends, whose block tables are its own, and its place in the cache; None: all have
            one table, and the cache all of them.
    """

    def __init__(
        self,
        library: Library,
        model: PackedModel,
        kv: PackedKV,
        *,
        precision: Precision,
        ranks: Ranks | None = None,
        states: PackedStates | None = None,
        groups: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        mixtures = [None if x.mixture is None else np.array(x.mixture.words(), np.int64) for x in model.layers]
        latents = [None if x.latent is None else np.array(x.latent.words(), np.int64) for x in model.layers]
        states = states or PackedStates(model, 1)
        rules = [
            np.array(x.recurrent.rule.words(), np.int64) if x.recurrent and x.recurrent.rule else None
            for x in model.layers
        ]
        recurrent = [
            np.array(x.recurrent.words(states.address(i), states.stride, rules[i]), np.int64) if x.recurrent else None
            for i, x in enumerate(model.layers)
        ]
        attending = [layer for layer in model.layers if layer.recurrent is None]
        groups = groups or [(0, place) for place in range(len(attending))]
        kinds = [(layer.window, group) for layer, (group, _) in zip(attending, groups, strict=True)]
        plans = {kind: plan for plan, kind in enumerate(dict.fromkeys(kinds))}
        places = iter(zip(groups, (plans[kind] for kind in kinds), strict=True))
        layers = []
        for i, layer in enumerate(model.layers):
            (group, place), plan = next(places) if layer.recurrent is None else ((0, 0), 0)
            layers.append(layer.words(*kv.addresses(place), mixtures[i], latents[i], recurrent[i], group, plan))
        words = np.array(model.words(precision, kv), np.int64)
        self._library, self._keep = library, (model, kv, mixtures, latents, states, rules, recurrent)
        self._vocab, self._hidden = model.head.weight.n, model.embedding.k
        self._logits = np.empty((0, self._vocab), np.float32)  # reused: fresh memory would cause page faults
        numbers = np.array(model.numbers(), np.float32)
        self._handle = library.call("decoder_new", words, numbers, np.array(layers, np.int64))
        self._finalizer = weakref.finalize(self, library.call, "decoder_free", self._handle)
        self._ranks = ranks
        self._failed: list[BaseException] = []
        if ranks is not None:
            self._callback = _SUM(self._sum_over_ranks)
            address = ctypes.cast(self._callback, ctypes.c_void_p).value
            library.call("decoder_set_ranks", self._handle, ranks.first_token, address)

    def step(
        self,
        token_ids: Int32,
        query_start: Int32,
        context_lens: Int32,
        block_tables: Int32,
        token_index: Int64,
        *,
        kept: Int64 | None = None,
        whole: bool = True,
        adapters: Sequence[PackedAdapter | None] | None = None,
        states: tuple[Int32, Int32, Int32] | None = None,
        gives_way: Int32 | None = None,
    ) -> Float32:
        """One step: keys and values of all tokens are stored, logits [len(token_index), vocab] computed.

        Args:
            token_ids, query_start, context_lens, block_tables: as in `octavo.step.StepBatch`, contiguous.
            token_index: flat tokens after which logits are computed; each at most once.
            kept: other flat tokens, each at most once, whose `states` are wanted.
            whole: also compute the last layer for the other tokens, which `hidden` and `logits` need. Without it, a
                prompt saves most of that layer.
            adapters: of each sequence; None: none has one.
            states: source, saved and states of `octavo.step.StateRows`; None: all begin, and nothing is kept.
            gives_way: [1], which another thread may set: the step ends before the next layer where it is not 0.

        Returns:
            an array that the next step overwrites.

        Raises:
            StepGaveWay: it has; what it stored is to be stored again.
            the error that the sum over ranks raised.
        """
        if len(token_index) > len(self._logits):
            self._logits = np.empty((2 * len(token_index), self._vocab), np.float32)
        out = self._logits[: len(token_index)]
        count = len(token_index)
        if kept is not None:
            token_index = np.concatenate([token_index, kept])
        sequences = len(context_lens), query_start, context_lens, block_tables, block_tables.shape[-1]
        addresses = np.array([0 if adapter is None else adapter.address for adapter in adapters or ()], np.int64)
        if len(addresses):
            self._library.call("decoder_adapt", self._handle, addresses)
        if states is not None:
            source, saved, targets = (np.ascontiguousarray(array, np.int32) for array in states)
            self._library.call("decoder_recur", self._handle, source, len(saved), saved, targets)
        if gives_way is not None:
            self._library.call("decoder_give_way", self._handle, gives_way)
        ended = self._library.call(
            "decoder_step",
            self._handle,
            token_ids,
            *sequences,
            whole,
            token_index,
            count,
            len(token_index) - count,
            out,
        )
        if self._failed:
            raise self._failed.pop()
        if not ended:
            raise StepGaveWay
        return out

    def _sum_over_ranks(self, address: int, count: int) -> None:
        """Called by the library during a step; an exception must not pass through C++, so it is kept and raised
        later."""
        import torch

        assert self._ranks is not None
        if self._failed:
            return
        try:
            values = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
            self._ranks.sum(torch.from_numpy(values))
        except BaseException as error:
            self._failed.append(error)

    def hidden(self, num_tokens: int) -> Float32:
        """[num_tokens, hidden] of the last step (`whole`): the residual stream before the final norm."""
        out = np.empty((num_tokens, self._hidden), np.float32)
        self._library.call("decoder_hidden", self._handle, out)
        return out

    def states(self, token_index: Int64) -> Float32:
        """[len(token_index), hidden] after the final norm, of tokens that the last step kept."""
        out = np.empty((len(token_index), self._hidden), np.float32)
        self._library.call("decoder_states", self._handle, token_index, len(token_index), out)
        return out

    def logits(self, token_index: Int64) -> Float32:
        """Logits after other tokens of the last step (`whole`)."""
        out = np.empty((len(token_index), self._vocab), np.float32)
        self._library.call("decoder_logits", self._handle, token_index, len(token_index), out)
        return out


def _address(array: Float32 | None) -> int:
    return 0 if array is None else array.ctypes.data
