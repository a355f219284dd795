"""A GGUF file's tensor directory: what lies where, without the metadata before it.

`gguf.GGUFReader` builds numpy views of every array element of the metadata first: 1.7 s and 157 MB for SmolLM2's
tokenizer, which a start does not need. This skips them in 0.03 s.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ModelError

_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file."""

    file: Path
    name: str
    shape: tuple[int, ...]  # rows first
    format: str  # of its blocks: "F32", "Q4_K", ...
    offset: int  # bytes from the start of the file
    row_bytes: int  # of one row, or of the one value of a row where it is a vector

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.shape[0] * self.row_bytes


def read_directory(file: Path) -> dict[str, Entry]:
    """The file's tensors by name.

    Raises:
        ModelError: not a little-endian GGUF file of version 2 or 3, cut off, or with a block format unknown to `gguf`.
    """
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries = _Cursor(data).entries(file)
            if beyond := [entry.name for entry in entries if entry.offset + entry.num_bytes > len(data)]:
                raise ValueError(f"it ends before its tensor {beyond[0]}")
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"{file} is not a readable GGUF file: {error}") from error
    return {entry.name: entry for entry in entries}


class _Cursor:
    """Reads forward through the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.offset = 0

    def entries(self, file: Path) -> list[Entry]:
        magic, version, num_tensors, num_keys = self.take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"magic {magic!r}, version {version}; expected b'GGUF', version 2 or 3")
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(num_keys):
            key = self.string()
            (kind,) = self.take("<I")
            if key == b"general.alignment" and kind == _UINT32:
                (alignment,) = self.take("<I")
            else:
                self.skip(kind)
        stored = [self.tensor() for _ in range(num_tensors)]
        start = -(-self.offset // alignment) * alignment
        return [_entry(file, name, shape, kind, start + offset) for name, shape, kind, offset in stored]

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self.data, self.offset)
        self.offset += struct.calcsize(code)
        return values

    def string(self) -> bytes:
        (size,) = self.take("<Q")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def skip(self, kind: int) -> None:
        if kind == _STRING:
            (size,) = self.take("<Q")
            self.offset += size
        elif kind == _ARRAY:
            inner, length = self.take("<IQ")
            if inner in _SIZES:
                self.offset += length * _SIZES[inner]
            else:
                for _ in range(length):
                    self.skip(inner)
        else:
            self.offset += _SIZES[kind]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string().decode()
        (rank,) = self.take("<I")
        sizes = self.take(f"<{rank}Q")
        kind, offset = self.take("<IQ")
        return name, tuple(reversed(sizes)), kind, offset


def _entry(file: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block = GGMLQuantizationType(kind)
    block_values, block_bytes = GGML_QUANT_SIZES[block]
    values = math.prod(shape[1:])
    if values % block_values:
        raise ValueError(f"rows of {values} values in blocks of {block_values} ({name})")
    return Entry(file, name, shape, block.name, offset, values // block_values * block_bytes)
