"""Tensor parallelism: the group of ranks, and each rank's share of the model.

Every rank has whole query heads with the key-value heads that they need, a part of the MLP's inner dimension and a part
of the vocabulary. `q`, `k`, `v`, `gate`, `up`, the embedding and the head are cut by rows: a rank computes some of the
outputs. `out` and `down` are cut by columns: a rank has some of the inputs, and the results are summed over the ranks.
So a rank runs a smaller `ModelSpec`, with a sum over the ranks after the embedding and after each layer's attention and
MLP. In a mixture of experts every rank has a part of every expert's inner dimension, so all ranks have equal work
whichever experts the tokens choose.

Heads need not divide evenly: of 3 key-value heads on 2 ranks, one rank gets one and the other two, each with the query
heads of its key-value heads, and the MLP is cut unevenly the other way, so that both read equally many weights. With
more ranks than key-value heads, several ranks keep a copy of the same one and divide the query heads of its group: all
of them, in models with latent attention, whose cached record is what every head attends to.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

_LANES = 16
"""Rows that the packed layout interleaves: the vocabulary is cut at multiples of this."""


class TPGroup:
    """The ranks that share one model. This base class is a group of one rank, which exchanges nothing.

    Attributes:
        rank: of this process, from 0.
        size: ranks in the group.
    """

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """Replace `x` by the sum of all ranks' `x`, and return it."""
        return x

    def gather(self, x: Tensor) -> list[Tensor] | None:
        """All ranks' `x`, which have one shape, on rank 0; None on the others."""
        return [x]

    def smallest(self, value: int) -> int:
        """The smallest of all ranks' values; all ranks ask equally often, and in the same order."""
        return value


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a model.

    Attributes:
        rank, size: the rank, and the number of ranks.
        whole: the model.
        spec: the smaller model that the rank runs.
        query_heads, kv_heads, inner, vocab: indices that this rank has; `inner` are those of the MLP's, or each
            expert's, inner dimension.
        shared, dense: the same for the shared expert's inner dimension, and for that of layers without experts.
        vocab_step: rows of the vocabulary per rank; the last ranks may have fewer.
    """

    rank: int
    size: int
    whole: ModelSpec
    spec: ModelSpec
    query_heads: range
    kv_heads: range
    inner: range
    shared: range
    vocab: range
    vocab_step: int
    dense: range = range(0)

    def part(self, name: str, layer: int | None = None) -> tuple[range | None, range | None]:
        """The rows and the columns of a stored tensor that this rank needs; None means all."""
        mlp = self.shared if self.whole.num_experts else self.inner
        mlp = self.dense if layer in self.whole.dense_layers else mlp
        latent, queries = self.whole.latent, _times(self.query_heads, self.whole.query_head)
        rows = {
            "q": queries,
            "q_b": queries,
            "k_b": _times(self.query_heads, latent.size if latent else 0),
            "v_b": _times(self.query_heads, latent.value if latent else 0),
            "k": _times(self.kv_heads, self.whole.head_dim),
            "v": _times(self.kv_heads, self.whole.head_dim),
            "gate": mlp,
            "up": mlp,
            "expert_gate": self.inner,
            "expert_up": self.inner,
            "embedding": self.vocab,
            "lm_head": self.vocab,
            "sinks": self.query_heads,
        }
        columns = {
            "out": _times(self.query_heads, self.whole.value_size // self.whole.num_heads),
            "down": mlp,
            "expert_down": self.inner,
        }
        return rows.get(name), columns.get(name)


def share_of(spec: ModelSpec, rank: int = 0, size: int = 1, unit: int = 1) -> Share:
    """The share of one of `size` ranks.

    Args:
        spec: the whole model.
        unit: columns of a quantised block; cuts are at multiples of it.

    Raises:
        ConfigError: so many ranks cannot share this model; the message says why and how many can.
    """
    if size > 1 and spec.qk_norm and spec.qk_norm_span == "heads":
        raise ConfigError(f"tensor_parallel_size is {size}: the model norms queries over all heads; set it to 1")
    if size > 1 and spec.recurrence is not None:
        raise ConfigError(f"tensor_parallel_size is {size}: recurrent layers are not cut; set it to 1")
    heads = split_heads(spec, size)
    inner = _split_inner(spec, heads, unit)[rank]
    shared = _split_shared(spec.shared_expert_size, size, unit)[rank]
    dense = _split_shared(spec.dense_size, size, unit)[rank]
    step = -(-spec.vocab_size // (size * _LANES)) * _LANES if size > 1 else spec.vocab_size
    vocab = range(min(rank * step, spec.vocab_size), min((rank + 1) * step, spec.vocab_size))
    if not vocab:
        raise ConfigError(f"tensor_parallel_size is {size}: too many for a vocabulary of {spec.vocab_size}")
    query, kv = heads[rank]
    local = dataclasses.replace(
        spec,
        num_heads=len(query),
        num_kv_heads=len(kv),
        intermediate_size=len(inner),
        shared_expert_size=len(shared),
        dense_size=len(dense),
        vocab_size=len(vocab),
        alibi_slopes=spec.alibi_slopes[query.start : query.stop],
    )
    return Share(rank, size, spec, local, query, kv, inner, shared, vocab, step, dense)


def split_heads(spec: ModelSpec, size: int) -> list[tuple[range, range]]:
    """Each rank's query heads, and the key-value heads that these need."""
    num_kv, group = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
    if size <= num_kv:
        shares = [range(begin, end) for begin, end in pairwise(num_kv * i // size for i in range(size + 1))]
        return [(_times(kv, group), kv) for kv in shares]
    if -(-size // num_kv) > group:
        raise ConfigError(
            f"tensor_parallel_size is {size}, but the model has {num_kv} key-value heads with {group} query heads "
            f"each: at most {spec.num_heads} ranks, each with whole query heads, can share it"
        )
    heads = []
    for kv in range(num_kv):
        ranks = size * (kv + 1) // num_kv - size * kv // num_kv
        cuts = [kv * group + group * i // ranks for i in range(ranks + 1)]
        heads += [(range(begin, end), range(kv, kv + 1)) for begin, end in pairwise(cuts)]
    return heads


def _split_inner(spec: ModelSpec, heads: list[tuple[range, range]], unit: int) -> list[range]:
    """Cut the MLP's inner dimension so that all ranks have equally many weights, attention included."""
    size, inner = len(heads), spec.intermediate_size
    # multiples of 64 keep every row aligned; for small models this must not unbalance the ranks
    unit = max(unit, 64 if inner >= 1024 * size else 1)
    each = (3 if spec.gated else 2) * max(1, spec.num_experts)  # rows and columns of hidden_size per inner value
    attention = [2 * spec.head_dim * (len(query) + len(kv)) for query, kv in heads]
    even = (sum(attention) + each * inner) / size
    wanted = [max((even - mine) / each, 0.0) for mine in attention]
    cuts = [round(inner * sum(wanted[:i]) / sum(wanted) / unit) * unit for i in range(size)] + [inner]
    if any(begin >= end for begin, end in pairwise(cuts)):
        raise ConfigError(
            f"tensor_parallel_size is {size}: too many for an MLP of {inner} that can be cut every {unit} values"
        )
    return [range(begin, end) for begin, end in pairwise(cuts)]


def _split_shared(inner: int, size: int, unit: int) -> list[range]:
    """Cut the shared expert's inner dimension evenly."""
    unit = max(unit, 64 if inner >= 1024 * size else 1)
    cuts = [inner * i // (size * unit) * unit for i in range(size)] + [inner]
    if inner and any(begin >= end for begin, end in pairwise(cuts)):
        raise ConfigError(f"tensor_parallel_size is {size}: too many for a shared expert of {inner}")
    return [range(begin, end) for begin, end in pairwise(cuts)]


def _times(heads: range, each: int) -> range:
    return range(heads.start * each, heads.stop * each)
