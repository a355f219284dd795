"""Tensor parallelism as the model sees it: the group of ranks, and each rank's share of the model.

Every rank has whole query heads with the key-value heads that they need, some of the MLP's inner values, and some of
the vocabulary. `q`, `k`, `v`, `gate`, `up`, the embedding and the head are cut by rows (a rank computes some outputs),
`out` and `down` by columns (a rank has some inputs, and a sum over the ranks follows). So a rank runs a smaller
`ModelSpec`, and sums after the embedding and after each layer's attention and MLP. Of a mixture every rank has some
inner values of every expert: whatever the tokens choose, all ranks have equally much to do.

Heads that do not divide: with 3 key-value heads over 2 ranks one rank gets one and the other two, each with its query
heads, and the MLP is cut the other way, so that both read equally many weights. With more ranks than key-value heads,
ranks share one: each keeps a copy of it, and the query heads of its group are divided.
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
"""Rows that the packed layout keeps side by side: the vocabulary is cut between them."""


class TPGroup:
    """The ranks that share one model. This one is the group of a single rank, which has nothing to exchange.

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
        """The smallest of all ranks' values."""
        return value


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a model.

    Attributes:
        rank, size: whose it is, and of how many.
        whole: the model.
        spec: the smaller model that the rank runs.
        query_heads, kv_heads, inner, vocab: which ones it has; `inner` of the MLP, or of each expert.
        shared: which inner values of an MLP beside experts.
        vocab_step: rows of the vocabulary that every rank but the last ones has.
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

    def part(self, name: str) -> tuple[range | None, range | None]:
        """The rows and the columns of a stored tensor that this rank needs; None means all."""
        mlp = self.shared if self.whole.num_experts else self.inner
        rows = {
            "q": _times(self.query_heads, self.whole.head_dim),
            "k": _times(self.kv_heads, self.whole.head_dim),
            "v": _times(self.kv_heads, self.whole.head_dim),
            "gate": mlp,
            "up": mlp,
            "expert_gate": self.inner,
            "expert_up": self.inner,
            "embedding": self.vocab,
            "lm_head": self.vocab,
        }
        columns = {
            "out": _times(self.query_heads, self.whole.head_dim),
            "down": mlp,
            "expert_down": self.inner,
        }
        return rows.get(name), columns.get(name)


def share_of(spec: ModelSpec, rank: int = 0, size: int = 1, unit: int = 1) -> Share:
    """The share of one of `size` ranks.

    Args:
        spec: the whole model.
        unit: columns of a quantised block, which a cut must not go through.

    Raises:
        ConfigError: so many ranks cannot share this model; the message says why and how many can.
    """
    heads = split_heads(spec, size)
    inner = _split_inner(spec, heads, unit)[rank]
    shared = _split_shared(spec.shared_expert_size, size, unit)[rank]
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
        vocab_size=len(vocab),
        alibi_slopes=spec.alibi_slopes[query.start : query.stop],
    )
    return Share(rank, size, spec, local, query, kv, inner, shared, vocab, step)


def split_heads(spec: ModelSpec, size: int) -> list[tuple[range, range]]:
    """Each rank's query heads and the key-value heads that they need."""
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
    """Cut the MLP so that all ranks have equally many weights, whatever their attention has."""
    size, inner = len(heads), spec.intermediate_size
    # Rows of matrices in multiples of 64 keep every row aligned; it must not unbalance small models
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
    """Cut the MLP beside experts evenly."""
    unit = max(unit, 64 if inner >= 1024 * size else 1)
    cuts = [inner * i // (size * unit) * unit for i in range(size)] + [inner]
    if inner and any(begin >= end for begin, end in pairwise(cuts)):
        raise ConfigError(f"tensor_parallel_size is {size}: too many for a shared expert of {inner}")
    return [range(begin, end) for begin, end in pairwise(cuts)]


def _times(heads: range, each: int) -> range:
    return range(heads.start * each, heads.stop * each)
