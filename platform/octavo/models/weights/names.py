"""How checkpoint formats name and store each tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelError
from octavo.models.families.record import GGUF_PARTS, GGUF_STACKS, USUAL_PARTS, Family, Stack
from octavo.models.families.table import FAMILIES, RECORDS
from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_names import ENCODER_NAMES, ENCODER_STACKS, GGUF_ENCODER_PARTS, plain_encoder_name

if TYPE_CHECKING:
    from torch import Tensor

    from octavo.models.weights.layout import Slot  # imports torch, 2 s, which reading names does not need

MLP_PARTS = ("gate", "up", "down")


class Turned(NamedTuple):
    """Of each head's `rows` rows, `size` from `first` on."""

    rows: int
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Naming:
    """One format's names for one family.

    Attributes:
        layer: prefix of a layer's tensors, with {} for its index.
        parts: part -> name, with {} for an expert's index; "part.kind" -> name with its kind.
        stacks: name of a matrix that holds several parts -> which.
        norm_offset, logarithms: as in `Names`.
        turned: part -> where its rows are stored in the order 0, n / 2, 1, n / 2 + 1, ... because the format's own code
            rotates neighbours.
        renamed: other name of a part -> its name in `parts`.
        transposed: layers' matrices are stored [in, out].
        dense_layers, dense: layers of a mixture without experts, and how they name their MLP.
    """

    layer: str
    parts: Mapping[str, str]
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    norm_offset: float = 0.0
    logarithms: tuple[str, ...] = ()
    turned: Mapping[str, Turned] = field(default_factory=dict)
    dense_layers: tuple[int, ...] = ()
    dense: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False

    def own_name(self, name: str) -> str:
        """A tensor's name in a checkpoint -> the one that `stored_name` gives it."""
        return renamed(plain_name(name), self.renamed)

    def is_transposed(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is stored [in, out]."""
        return self.transposed and len(shape) == 2 and name.startswith(self.layer.partition("{}")[0])

    def stored_name(self, slot: Slot) -> str:
        """The name of a slot's tensor in the checkpoint."""
        prefix = "" if slot.layer is None else self.layer.format(slot.layer)
        if (whole := self.parts.get(f"{slot.part}.{slot.kind}")) is not None:
            return prefix + whole
        return f"{prefix}{self.part_name(slot.part, slot.layer).format(slot.expert)}.{slot.kind}"

    def part_name(self, part: str, layer: int | None) -> str:
        """What a layer's part is called, with {} for an expert's index."""
        own = self.dense if layer in self.dense_layers and part in MLP_PARTS else self.parts
        return own[part]

    def restore(self, slot: Slot, values: Tensor) -> None:
        """Make of a slot's stored values, in place, those that are computed with."""
        if slot.is_norm:
            values.add_(self.norm_offset)
        elif slot.part in self.logarithms:
            values.exp_().neg_()

    def is_behind(self, name: str, layers: int) -> bool:
        """Whether a tensor is of a layer behind the last: one that guesses further tokens."""
        first, _, rest = self.layer.partition("{}")
        index = name.removeprefix(first).partition(rest)[0]
        return name.startswith(first) and index.isascii() and index.isdigit() and int(index) >= layers

    def stack_of(self, name: str) -> tuple[list[tuple[str, str]], Stack] | None:
        """(part, name) of the tensors that a weight or bias stacks, and how; None where it is one tensor alone."""
        stem, _, kind = name.rpartition(".")
        for own, stack in self.stacks.items():
            if stem == own or stem.endswith(f".{own}"):
                prefix = stem.removesuffix(own)
                return [(part, f"{prefix}{self.parts[part]}.{kind}") for part in stack.parts], stack
        return None


def hf_naming(spec: ModelSpec) -> Naming:
    """Hugging Face's names, without the prefixes that `plain_name` removes."""
    if spec.encoder is not None:
        return Naming(*ENCODER_NAMES[spec.family], ENCODER_STACKS)
    names = FAMILIES[spec.family].names
    parts, dense = hf_parts(FAMILIES[spec.family]), (spec.dense_layers, USUAL_PARTS | dict(names.dense))
    values = names.norm_offset, names.logarithms, _turned(spec, names.interleaved)
    return Naming(names.layer, parts, names.stacks, *values, *dense, names.renamed, names.transposed)


def hf_parts(family: Family) -> dict[str, str]:
    """Part -> Hugging Face's name of it."""
    return USUAL_PARTS | dict(family.names.parts)


def gguf_naming(spec: ModelSpec) -> Naming:
    """GGUF's names.

    Raises:
        ModelError: it has none for this family.
    """
    if spec.encoder is not None:
        return Naming("blk.{}.", GGUF_ENCODER_PARTS, GGUF_STACKS)
    gguf = FAMILIES[spec.family].gguf
    if gguf is None:
        raise ModelError(f"GGUF files do not hold models of type {spec.family!r}")
    shared = {"attention_norm": "attn_norm"} if spec.shared_norm else {}
    parts, dense = gguf_parts(FAMILIES[spec.family]) | shared, (spec.dense_layers, GGUF_PARTS)
    turned = _turned(spec, gguf.interleaved)
    return Naming("blk.{}.", parts, GGUF_STACKS | dict(gguf.stacks), 0.0, (), turned, *dense)


def _turned(spec: ModelSpec, interleaved: bool) -> dict[str, Turned]:
    count = spec.rope.rotary_dim
    if not interleaved or not count:
        return {}
    if (latent := spec.latent) is None:
        return dict.fromkeys(("q", "k"), Turned(spec.head_dim, 0, count))
    queries = Turned(spec.query_head, latent.content, count)
    return {"q": queries, "q_b": queries, "kv_a": Turned(spec.head_dim, latent.size, count)}


def gguf_parts(family: Family) -> dict[str, str]:
    """Part -> GGUF's name of it."""
    return GGUF_PARTS | dict({} if family.gguf is None else family.gguf.parts)


def halves_order(rows: int, turned: Turned) -> npt.NDArray[np.int64]:
    """For each row of queries or keys in two halves, the row at which an interleaved one is stored."""
    places, end = np.arange(rows).reshape(-1, turned.rows), turned.first + turned.size
    halves = places[:, turned.first : end].reshape(len(places), -1, 2).swapaxes(1, 2).reshape(len(places), -1)
    return np.concatenate([places[:, : turned.first], halves, places[:, end:]], axis=1).reshape(-1)


def renamed(name: str, others: Mapping[str, str]) -> str:
    """A tensor's name with the usual one of its part, where it has another."""
    stem, _, kind = name.rpartition(".")
    for other, usual in others.items():
        if stem == other or stem.endswith(f".{other}"):
            return f"{stem.removesuffix(other)}{usual}.{kind}"
    return name


def plain_name(name: str) -> str:
    """A tensor's name without the prefixes of wrapping models: `model.`, `bert.`, ..."""
    name = plain_encoder_name(name)
    for prefix in ("transformer.", "language_model.", "model.", "language_model.", *_PREFIXES):
        name = name.removeprefix(prefix)
    return _BARE.sub(lambda found: f"{found[1]}.{found[2] or 'weight'}", name)


_BARE = re.compile(r"(\.experts\.\w+_proj)(?:_(bias))?$")
"""Matrices of all experts, and their biases, whose names do not say which they are."""


_PREFIXES = tuple(dict.fromkeys(family.names.prefix for family in RECORDS if family.names.prefix))
