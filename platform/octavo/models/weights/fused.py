"""Matrices that a checkpoint stores stacked by rows, and that a model has one by one: q, k and v, or gate and up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from octavo.errors import ModelError
from octavo.gguf_header import Entry, read_directory
from octavo.models.families.record import Stack
from octavo.models.recurrent_spec import DeltaNet
from octavo.models.spec import ModelSpec
from octavo.models.weights.names import Naming


def stacked_rows(stack: Stack, spec: ModelSpec) -> dict[str, list[range]]:
    """Part -> where its rows are in the stack (of one expert), in their order."""
    inner = spec.shared_expert_size if spec.num_experts else spec.intermediate_size
    heads, latent = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}, spec.latent
    if latent is not None:
        heads = {"k_b": spec.num_heads * latent.content, "v_b": spec.value_size}
    heads |= {"q_gate": spec.q_size} | (spec.recurrence.inputs if spec.recurrence is not None else {})
    sizes = heads | dict.fromkeys(("gate", "up"), inner) | dict.fromkeys(("down", "expert_down"), spec.hidden_size)
    sizes |= dict.fromkeys(("expert_gate", "expert_up"), spec.intermediate_size)
    if stack.alternating:
        count = len(stack.parts)
        return {part: [range(i, count * sizes[part], count)] for i, part in enumerate(stack.parts)}
    times = _groups(stack, spec) if stack.grouped else 1
    found: dict[str, list[range]] = {part: [] for part in stack.parts}
    start = 0
    for _ in range(times):
        for part in stack.parts:
            found[part].append(range(start, start := start + sizes[part] // times))
    return found


def _groups(stack: Stack, spec: ModelSpec) -> int:
    """Whose rows come one group after the other."""
    if isinstance(spec.recurrence, DeltaNet) and stack.parts[0] in spec.recurrence.inputs:
        return spec.recurrence.key_heads
    return spec.num_kv_heads if spec.latent is None and "q_gate" not in stack.parts else spec.num_heads


def total_rows(rows: Mapping[str, list[range]]) -> int:
    """Of the whole stack."""
    return max(found[-1].stop for found in rows.values())


def some_of(rows: list[range], wanted: range) -> Iterator[range]:
    """Where the rows `wanted` of a part are in the stack, in their order."""
    start = 0
    for run in rows:
        begin, end = max(wanted.start - start, 0), min(wanted.stop - start, len(run))
        if begin < end:
            yield run[begin:end]
        start += len(run)


def gguf_entries(file: Path, naming: Naming, spec: ModelSpec) -> Mapping[str, Entry]:
    """The tensors of a GGUF file, stacked ones as their parts, but for parts whose rows do not follow each other.

    Raises:
        ModelError: the file is damaged.
    """
    stored = [entry for entry in read_directory(file).values() if not naming.is_behind(entry.name, spec.num_layers)]
    parts = [part for entry in stored for part in _split(entry, naming, spec)]
    return {part.name: part for part in parts}


def _split(entry: Entry, naming: Naming, spec: ModelSpec) -> list[Entry]:
    if (found := naming.stack_of(entry.name)) is None:
        return [_as_matrix(entry, naming)]
    names, stack = found
    if stack.grouped:
        return [entry]
    rows = stacked_rows(stack, spec)
    each = [_expert(entry, i) for i in range(experts_of(entry, spec))] if stack.experts else [entry]
    check_rows(entry.name, each[0].shape[0], rows)
    return [
        replace(
            one, name=name_of(name, i), shape=(len(at), *one.shape[1:]), offset=one.offset + at.start * one.row_bytes
        )
        for i, one in enumerate(each)
        for part, name in names
        for at in rows[part]
    ]


def _expert(entry: Entry, index: int) -> Entry:
    """One expert's matrix, or its bias."""
    row_bytes, start = entry.row_bytes // entry.shape[1], entry.offset + index * entry.row_bytes
    return replace(entry, shape=entry.shape[1:], row_bytes=row_bytes, offset=start)


_BY_HEAD = ("k_b.weight", "v_b.weight")
_VECTORS = ("delta_decay.weight", "delta_skip.weight", "delta_scale.weight")


def _as_matrix(entry: Entry, naming: Naming) -> Entry:
    """A matrix of one row, which is stored as a vector; those of all heads, which are stored one by one; vectors of
    a state space, which are stored as matrices."""
    if len(entry.shape) == 2 and entry.block_values == 1 and entry.name.endswith(_ends(naming, _VECTORS)):
        rows, columns = entry.shape
        return replace(entry, shape=(rows * columns,), row_bytes=entry.row_bytes // max(columns, 1))
    if len(entry.shape) == 3 and entry.name.endswith(_ends(naming, _BY_HEAD)):
        heads, rows, columns = entry.shape
        return replace(entry, shape=(heads * rows, columns), row_bytes=entry.row_bytes // rows)
    if len(entry.shape) != 1 or not entry.name.endswith(f".{naming.parts.get('shared_gate')}.weight"):
        return entry
    return replace(entry, shape=(1, *entry.shape), row_bytes=entry.num_bytes)


def _ends(naming: Naming, parts: tuple[str, ...]) -> tuple[str, ...]:
    """How the names of these tensors ("part.kind") end."""
    apart = [(part, *part.split(".")) for part in parts]
    return tuple(f".{naming.parts.get(part, f'{naming.parts.get(stem)}.{kind}')}" for part, stem, kind in apart)


class _Stored(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def experts_of(tensor: _Stored, spec: ModelSpec) -> int:
    """How many experts' matrices or biases a tensor holds.

    Raises:
        ModelError: they are not as many as the model has.
    """
    if len(tensor.shape) < 2 or tensor.shape[0] != spec.num_experts:
        raise ModelError(f"{tensor.name} is {list(tensor.shape)}, and the model has {spec.num_experts} experts")
    return spec.num_experts


def check_rows(name: str, found: int, rows: Mapping[str, list[range]]) -> None:
    """Raise `ModelError` unless a stack has the rows of its parts."""
    if total_rows(rows) != found:
        raise ModelError(f"{name} has {found} rows instead of {total_rows(rows)}")


def name_of(name: str, expert: int) -> str:
    """The name of one expert's tensor."""
    return name.replace("{}", str(expert))
