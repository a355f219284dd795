"""Finds a directory's safetensors files and the place of each tensor in them, without torch.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from octavo.errors import ModelError
from octavo.model_files import read_json, reading

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one value, by type."""

_MOST = 100_000_000
"""Most bytes of a header: the safetensors library's own limit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # "BF16", ...
    offset: int  # bytes from the start of the file
    num_bytes: int


def read_header(file: Path) -> dict[str, Entry]:
    """The file's tensors by name.

    Raises:
        ModelError: it is not a safetensors file, or cut off.
    """
    with reading(file):
        status = file.stat()
        return _read(file, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def header_in(data: bytes, file: Path) -> dict[str, Entry]:
    """The same of a file that has been read."""
    with reading(file):
        return _parsed(BytesIO(data), file, len(data))


@functools.lru_cache(maxsize=512)  # a start asks for every file several times, and a large model has hundreds
def _read(file: Path, identity: tuple[int, ...]) -> dict[str, Entry]:
    if not file.is_file():
        raise ModelError(f"{file} is not a file")
    with file.open("rb") as handle:
        return _parsed(handle, file, identity[1])


def _parsed(handle: BinaryIO, file: Path, size: int) -> dict[str, Entry]:
    start = handle.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(size - 8, _MOST):
        raise ModelError(f"{file} is damaged or not a safetensors file{_pointer(start)}")
    header = json.loads(handle.read(length).decode())
    if not isinstance(header, dict):
        raise ModelError(f"{file} is damaged or not a safetensors file: its header is not an object")
    header.pop("__metadata__", None)
    entries = {name: _entry(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_places(file, list(entries.values()), 8 + length, size)
    return entries


def _pointer(start: bytes) -> str:
    return ": it is a Git LFS pointer, fetch the file itself with `git lfs pull`" if start == b"version " else ""


def _entry(file: Path, name: str, entry: Any, base: int) -> Entry:
    shape, (begin, end), dtype = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    sizes = [*shape, begin, end]
    if dtype not in BITS or any(type(size) is not int or size < 0 for size in sizes):
        raise ModelError(f"{file} is damaged: its tensor {name!r} is of type {dtype!r} and shape {list(shape)}")
    if end - begin != -(-math.prod(shape) * BITS[dtype] // 8):
        raise ModelError(f"{file} is damaged: its tensor {name!r} of shape {list(shape)} has {end - begin} bytes")
    return Entry(file, name, shape, dtype, base + begin, end - begin)


def _check_places(file: Path, entries: list[Entry], begin: int, size: int) -> None:
    """Check that the tensors follow each other without gaps up to the end of the file."""
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.num_bytes)):
        if entry.offset != begin:
            raise ModelError(f"{file} is damaged: its tensor {entry.name!r} does not begin where the one before ends")
        begin += entry.num_bytes
    if begin != size:
        raise ModelError(f"{file} is damaged: its tensors end at byte {begin}, the file at {size}")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a directory's weights. As in transformers, a single model.safetensors wins over an index.

    Raises:
        ModelError: there is none, a shard is missing, or the index names something outside the directory.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    names = _indexed(index) if index.is_file() else _numbered([file.name for file in folder.glob("*.safetensors")])
    if not names:
        raise ModelError(f"{folder} holds no .safetensors file; other weight formats are not read{_pickles(folder)}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        source = "its index names" if index.is_file() else "the names of its other files ask for"
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which {source}")
    return [folder / name for name in names]


def _indexed(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ModelError(f"{index} names {outside[0]!r}, which is no .safetensors file of its folder")
    return names


_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def _numbered(names: list[str]) -> list[str]:
    """The given names, and those that are missing from a numbered series such as model-00001-of-00003."""
    wanted = set(names)
    for found in filter(None, map(_NUMBERED.fullmatch, names)):
        count = min(int(found[3]), 10_000)
        wanted |= {f"{found[1]}-{i:05}-of-{found[3]}.safetensors" for i in range(1, count + 1)}
    return sorted(wanted)


def _pickles(folder: Path) -> str:
    pickles = sorted(file.name for end in ("bin", "pt", "pth", "ckpt") for file in folder.glob(f"*.{end}"))
    return f" ({pickles[0]} is a pickle, which can run code: convert it to safetensors)" if pickles else ""
