"""Matrices that a checkpoint stores stacked by rows, and that a model has one by one: q, k and v, or gate and up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from octavo.gguf_header import Entry, read_directory

_FUSED = {
    "attn.Wqkv": ("attn.q", "attn.k", "attn.v"),
    "mlp.Wi": ("mlp.gate", "mlp.up"),
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
}
_OWN = {"nomic_bert": {"attn.Wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}}
"""What some families call the matrices when they are stored one by one."""


def fused_names(name: str, family: str) -> list[str]:
    """Names of the tensors that a weight or bias stacks, in row order; [] where it is one tensor alone."""
    stem, _, kind = name.rpartition(".")
    for end, parts in (_FUSED | _OWN.get(family, {})).items():
        if stem.endswith(f".{end}"):
            return [f"{stem.removesuffix(end)}{part}.{kind}" for part in parts]
    return []


def gguf_entries(file: Path, family: str) -> Mapping[str, Entry]:
    """The tensors of a GGUF file, stacked ones as their parts.

    Raises:
        ModelError: the file is damaged.
    """
    parts = [part for entry in read_directory(file).values() for part in _split(entry, family)]
    return {part.name: part for part in parts}


def _split(entry: Entry, family: str) -> list[Entry]:
    names = fused_names(entry.name, family)
    if not names or entry.shape[0] % len(names):
        return [entry]
    rows = entry.shape[0] // len(names)
    return [
        replace(entry, name=name, shape=(rows, *entry.shape[1:]), offset=entry.offset + i * rows * entry.row_bytes)
        for i, name in enumerate(names)
    ]
