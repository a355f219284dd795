"""A GGUF file's header: its metadata, and what lies where.

`gguf.GGUFReader` makes several numpy views per array element: 1.7 s and 157 MB for the 150,000 tokens, types and merges
of SmolLM2, 8 s for the three arrays of 262,144 in Gemma 3, at every start. This takes 0.03 s and 0.1 s.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ModelError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
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
    block_values: int  # columns of one block; 1 where it is not quantised

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.shape[0] * self.row_bytes


def read_metadata(file: Path) -> dict[str, Any]:
    """All keys of the file: scalars and strings as Python values, arrays as lists.

    Raises:
        ModelError: not a little-endian GGUF file of version 2 or 3, or cut off.
    """
    with _open(file) as cursor:
        return cursor.metadata()


def read_directory(file: Path) -> dict[str, Entry]:
    """The file's tensors by name.

    Raises:
        ModelError: as for `read_metadata`, or with a block format unknown to the gguf package.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise ModelError(f"{file} is not a readable GGUF file: {error}") from error
    return _directory(file, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)).copy()


@functools.lru_cache(maxsize=2)  # a start asks four times, and 0.03 s go by each time
def _directory(file: Path, _identity: tuple[int, ...]) -> dict[str, Entry]:
    with _open(file) as cursor:
        alignment = cursor.metadata().get("general.alignment", _DEFAULT_ALIGNMENT)
        stored = [cursor.tensor() for _ in range(cursor.num_tensors)]
        start = -(-cursor.offset // alignment) * alignment
        entries = [_entry(file, name, shape, kind, start + offset) for name, shape, kind, offset in stored]
        if beyond := [entry.name for entry in entries if entry.offset + entry.num_bytes > len(cursor.data)]:
            raise ValueError(f"it ends before its tensor {beyond[0]}")
        return {entry.name: entry for entry in entries}


@contextmanager
def _open(file: Path) -> Iterator[_Cursor]:
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Cursor(data)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"{file} is not a readable GGUF file: {error}") from error


class _Cursor:
    """Reads forward through the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.offset = 0
        magic, version, self.num_tensors, self.num_keys = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"magic {magic!r}, version {version}; expected b'GGUF', version 2 or 3")

    def metadata(self) -> dict[str, Any]:
        """The keys and values, which come first."""
        return {self._string(): self._value(self._take("<I")[0]) for _ in range(self.num_keys)}

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """The next tensor's name, shape, block format and offset; they follow the metadata."""
        name = self._string()
        (rank,) = self._take("<I")
        sizes = self._take(f"<{rank}Q")
        kind, offset = self._take("<IQ")
        return name, tuple(reversed(sizes)), kind, offset

    def _take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self.data, self.offset)
        self.offset += struct.calcsize(code)
        return values

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take("<" + _SCALARS[kind])[0]
        inner, length = self._take("<IQ")
        if inner in _SCALARS:
            return list(self._take(f"<{length}{_SCALARS[inner]}"))
        return [self._value(inner) for _ in range(length)]

    def _string(self) -> str:
        (size,) = _LENGTH.unpack_from(self.data, self.offset)
        start = self.offset + 8
        self.offset = start + size
        if self.offset > len(self.data):
            raise ValueError("a string runs past the end of the file")
        # some vocabularies hold broken UTF-8 in tokens that no merge reaches
        return self.data[start : self.offset].decode("utf-8", "replace")


_LENGTH = struct.Struct("<Q")  # read 150,000 times: parsing the format string each time would double the cost


def _entry(file: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block = GGMLQuantizationType(kind)
    block_values, block_bytes = GGML_QUANT_SIZES[block]
    values = math.prod(shape[1:])
    if values % block_values:
        raise ValueError(f"rows of {values} values in blocks of {block_values} ({name})")
    return Entry(file, name, shape, block.name, offset, values // block_values * block_bytes, block_values)
