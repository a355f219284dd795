"""Matrices that a checkpoint stores stacked by rows, and that a model has one by one: q, k and v, or gate and up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from octavo.errors import ModelError
from octavo.gguf_header import Entry, read_directory
from octavo.models.families.record import Stack
from octavo.models.spec import ModelSpec
from octavo.models.weights.names import Naming


def stacked_rows(stack: Stack, spec: ModelSpec) -> dict[str, list[range]]:
    """Part -> where its rows are in the stack, in their order."""
    inner = spec.shared_expert_size if spec.num_experts else spec.intermediate_size
    heads = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
    sizes = heads | dict.fromkeys(("gate", "up"), inner)
    times = spec.num_kv_heads if stack.grouped else 1
    found: dict[str, list[range]] = {part: [] for part in stack.parts}
    start = 0
    for _ in range(times):
        for part in stack.parts:
            found[part].append(range(start, start := start + sizes[part] // times))
    return found


def total_rows(rows: Mapping[str, list[range]]) -> int:
    """Of the whole stack."""
    return max(found[-1].stop for found in rows.values())


def some_of(rows: list[range], wanted: range) -> Iterator[range]:
    """Where the rows `wanted` of a part are in the stack, in their order."""
    start = 0
    for run in rows:
        begin, end = max(wanted.start - start, 0), min(wanted.stop - start, len(run))
        if begin < end:
            yield range(run.start + begin, run.start + end)
        start += len(run)


def gguf_entries(file: Path, naming: Naming, spec: ModelSpec) -> Mapping[str, Entry]:
    """The tensors of a GGUF file, stacked ones as their parts.

    Raises:
        ModelError: the file is damaged.
    """
    parts = [part for entry in read_directory(file).values() for part in _split(entry, naming, spec)]
    return {part.name: part for part in parts}


def _split(entry: Entry, naming: Naming, spec: ModelSpec) -> list[Entry]:
    if (found := naming.stack_of(entry.name)) is None:
        return [entry]
    names, stack = found
    rows = stacked_rows(stack, spec)
    if total_rows(rows) != entry.shape[0]:
        raise ModelError(f"{entry.name} has {entry.shape[0]} rows instead of {total_rows(rows)}")
    return [
        replace(entry, name=name, shape=(len(at), *entry.shape[1:]), offset=entry.offset + at.start * entry.row_bytes)
        for part, name in names
        for at in rows[part]
    ]
