"""Reads a GGUF file's key-value metadata and nothing else.

`gguf.GGUFReader` makes several numpy views per array element: 1.7 s for the 150,000 tokens, types and merges of
SmolLM2 and 8 s for the three arrays of 262,144 in Gemma 3, at every start of a process that only wants the tokenizer.
This takes 0.03 s and 0.1 s. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.errors import ModelError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path: Path) -> dict[str, Any]:
    """All keys of the file: scalars and strings as Python values, arrays as lists.

    Raises:
        ModelError: not a little-endian GGUF file of version 2 or 3, or cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}") from error


def _read(data: mmap.mmap) -> dict[str, Any]:
    magic, version, _, count = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"magic {magic!r}, version {version}; expected b'GGUF', version 2 or 3")
    metadata, offset = {}, 24
    for _ in range(count):
        key, offset = _string(data, offset)
        (kind,) = struct.unpack_from("<I", data, offset)
        metadata[key], offset = _value(data, offset + 4, kind)
    return metadata


def _value(data: mmap.mmap, offset: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _string(data, offset)
    if kind == _ARRAY:
        item, length = struct.unpack_from("<IQ", data, offset)
        return _array(data, offset + 12, item, length)
    code = "<" + _SCALARS[kind]
    return struct.unpack_from(code, data, offset)[0], offset + struct.calcsize(code)


def _array(data: mmap.mmap, offset: int, kind: int, length: int) -> tuple[list[Any], int]:
    if kind in _SCALARS:
        code = f"<{length}{_SCALARS[kind]}"
        return list(struct.unpack_from(code, data, offset)), offset + struct.calcsize(code)
    read: Callable[[mmap.mmap, int], tuple[Any, int]] = (
        _string if kind == _STRING else lambda data, offset: _value(data, offset, kind)
    )
    values = []
    for _ in range(length):
        value, offset = read(data, offset)
        values.append(value)
    return values, offset


_LENGTH = struct.Struct("<Q")


def _string(data: mmap.mmap, offset: int) -> tuple[str, int]:
    start = offset + 8
    end = start + _LENGTH.unpack_from(data, offset)[0]
    if end > len(data):
        raise ValueError("a string runs past the end of the file")
    # some vocabularies hold broken UTF-8 in tokens that no merge reaches
    return data[start:end].decode("utf-8", "replace"), end
