"""A GGUF file's header: its metadata, and the place of each tensor.

`gguf.GGUFReader` makes several numpy views per array element: 1.7 s and 157 MB for the 150,000 tokens, types and merges
of SmolLM2, 8 s for the three arrays of 262,144 in Gemma 3, at every start. This takes 0.03 s and 0.1 s.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).

A model may be split over files NAME-00001-of-00005.gguf and so on (llama.cpp's gguf-split): the first has the metadata,
each some of the tensors. The name of any of them names the whole model.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ModelError
from octavo.model_files import reading

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEFAULT_ALIGNMENT = 32
_MOST_ELEMENTS, _MOST_BYTES = 1 << 24, 1 << 26
"""Most elements of an array and most bytes of a string: 30 times the largest known vocabularies and templates."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file."""

    file: Path
    name: str
    shape: tuple[int, ...]  # rows first
    format: str  # of its blocks: "F32", "Q4_K", ...
    offset: int  # bytes from the start of the file
    row_bytes: int  # bytes of one row; of a vector, bytes of one value
    block_values: int  # columns of one block; 1 if the tensor is not quantised

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.shape[0] * self.row_bytes


def read_metadata(file: Path) -> dict[str, Any]:
    """All metadata keys of the file (of a split model: of its first file); scalars and strings as Python values, arrays
    as lists.

    Raises:
        ModelError: not a little-endian GGUF file of version 2 or 3, cut off, or parts of a split model are missing.
    """
    with _open(file) as cursor:
        metadata = cursor.metadata()
        parts = _parts(file, metadata)
    if parts[0] == file:
        return metadata
    with _open(parts[0]) as cursor:
        return cursor.metadata()


def read_directory(file: Path) -> dict[str, Entry]:
    """The tensors by name, of all files of a split model.

    Raises:
        ModelError: as for `read_metadata`, or with a block format unknown to the gguf package.
    """
    first, *others = map(_part, split_files(file))
    entries = dict(first.entries)
    for number, part in enumerate(others, start=1):
        if (part.number, part.count) != (number, first.count):
            raise ModelError(f"{file} is split, but part {number + 1} of it is part {part.number + 1} of {part.count}")
        if twice := entries.keys() & part.entries.keys():
            raise ModelError(f"{file} is split, and two parts of it hold {sorted(twice)[0]}")
        entries |= part.entries
    if others and first.tensors not in (None, len(entries)):
        raise ModelError(f"{file} is split over files of {len(entries)} tensors, and should have {first.tensors}")
    return entries


def split_files(file: Path) -> list[Path]:
    """All files of the model that `file` belongs to; only `file` itself if the model is not split.

    Raises:
        ModelError: as for `read_metadata`.
    """
    return _part(file).files


@dataclass(frozen=True, slots=True)
class _Part:
    """One file of a model: its number, how many files there are, how many tensors they hold in all, and this file's
    own."""

    files: list[Path]
    number: int
    count: int
    tensors: int | None
    entries: dict[str, Entry]


def _part(file: Path) -> _Part:
    with reading(file):
        status = file.stat()
        return _read_part(file, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=64)  # a start asks four times, and 0.03 s go by each time
def _read_part(file: Path, _identity: tuple[int, ...]) -> _Part:
    with _open(file) as cursor:
        metadata = cursor.metadata()
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment}, which is no power of two")
        stored = cursor.tensors()
        start = -(-cursor.offset // alignment) * alignment
        entries = [_entry(file, name, shape, kind, start + offset) for name, shape, kind, offset in stored]
        _check_places(entries, len(cursor.data))
        number, count = metadata.get("split.no", 0), metadata.get("split.count", 1)
        by_name = {entry.name: entry for entry in entries}
        return _Part(_parts(file, metadata), number, count, metadata.get("split.tensors.count"), by_name)


_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def _parts(file: Path, metadata: dict[str, Any]) -> list[Path]:
    count = metadata.get("split.count", 1)
    if count in (0, 1):
        return [file]
    found = _SPLIT.fullmatch(file.name)
    if found is None or int(found[3]) != count:
        raise ModelError(f"{file} is part of a model in {count} files, and is not called NAME-00001-of-{count:05}.gguf")
    names = [f"{found[1]}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    if missing := [name for name in names if not file.with_name(name).is_file()]:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise ModelError(f"{file} is part of a model in {count} files; missing are {', '.join(missing[:8])}{more}")
    return [file.with_name(name) for name in names]


def _check_places(entries: list[Entry], size: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset < end:
            raise ValueError(f"its tensor {entry.name!r} lies over another one")
        end = entry.offset + entry.num_bytes
        if end > size:
            raise ValueError(f"it ends before its tensor {entry.name!r}")


@contextmanager
def _open(file: Path) -> Iterator[_Cursor]:
    with reading(f"GGUF file {file}"):
        if file.exists() and not file.is_file():
            raise ValueError("it is not a file")
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Cursor(data)


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
        values: dict[str, Any] = {}
        for _ in range(self.num_keys):
            key = self._string()
            if key in values:  # as llama.cpp; and a count beyond all bounds ends here
                raise ValueError(f"the key {key!r} is there twice")
            values[key] = self._value(self._take("<I")[0])
        return values

    def tensors(self) -> list[tuple[str, tuple[int, ...], int, int]]:
        """The tensors' names, shapes, block formats and offsets, which follow the metadata."""
        found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(self.num_tensors):
            tensor = self._tensor()
            if tensor[0] in found:
                raise ValueError(f"two of its tensors are called {tensor[0]!r}")
            found[tensor[0]] = tensor
        return list(found.values())

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (rank,) = self._take("<I")
        sizes = self._take(f"<{rank}Q") if 1 <= rank <= 4 else (0,)
        if not all(sizes):
            raise ValueError(f"its tensor {name!r} has {rank} dimensions or none in one of them")
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
        if length > _MOST_ELEMENTS:
            raise ValueError(f"an array of {length} elements")
        if inner in _SCALARS:
            return list(self._take(f"<{length}{_SCALARS[inner]}"))
        if inner != _STRING:
            raise ValueError(f"an array of type {inner}")
        return [self._string() for _ in range(length)]

    def _string(self) -> str:
        (size,) = _LENGTH.unpack_from(self.data, self.offset)
        start = self.offset + 8
        self.offset = start + size
        if self.offset > len(self.data) or size > _MOST_BYTES:
            raise ValueError(f"a string of {size} bytes runs past the end of the file")
        # some vocabularies hold broken UTF-8 in tokens that no merge reaches
        return self.data[start : self.offset].decode("utf-8", "replace")


_LENGTH = struct.Struct("<Q")  # used 150,000 times; parsing the format string each time would double the cost


def _entry(file: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block = GGMLQuantizationType(kind)
    block_values, block_bytes = GGML_QUANT_SIZES[block]
    values = math.prod(shape[1:])
    if values % block_values:
        raise ValueError(f"rows of {values} values in blocks of {block_values} ({name})")
    return Entry(file, name, shape, block.name, offset, values // block_values * block_bytes, block_values)
