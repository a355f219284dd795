"""A file of packed tensors, which is read by mapping it: replicas on one machine share its pages.

    tensors, each at a multiple of 64 bytes | directory, JSON | padding | footer: 64 bytes

The footer comes last, so that a file cut short has none; its checksum covers everything before it.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from octavo_kernels.checksum import checksum
from octavo_kernels.linear import PackedWeight
from octavo_kernels.linear.formats import Array
from octavo_kernels.linear.pack import packed_shape

Part = tuple[int | None, str, str]
"""A tensor's layer, part and kind, as in `weights.layout.Slot`; an expert's number is a part of its part."""

Packed = PackedWeight | Array
"""A matrix, or a float32 array."""

_ALIGNMENT = 64
_FOOTER = struct.Struct("<QQQ32s8s")  # start and length of the directory, checksum, padding, magic
_MAGIC = b"octavo-1"


def expert_part(part: str, expert: int) -> str:
    """The part of one of a mixture's experts."""
    return f"{part}.{expert}"


class Damaged(Exception):
    """The file is not what `write_packed` wrote; the message says what is wrong."""


def write_packed(path: Path, parts: Iterable[tuple[Part, Packed]]) -> None:
    """Write `parts` to a file, with one part in memory at a time. The file appears complete or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            _write(file, parts)
        temporary.chmod(0o644)  # independent of the umask: a file that others can write is not read
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(file: IO[bytes], parts: Iterable[tuple[Part, Packed]]) -> None:
    directory: list[list[Any]] = []  # layer, part, kind, format of a matrix, shape, start
    for part, packed in parts:
        if isinstance(packed, PackedWeight):
            directory.append([*part, packed.format, [packed.n, packed.k], _append(file, packed.data)])
        else:
            directory.append([*part, None, packed.shape, _append(file, packed)])
    text = json.dumps(directory).encode()
    start = _append(file, np.frombuffer(text, np.uint8))
    file.flush()
    total = checksum(np.frombuffer(_map(file), np.uint8))
    file.write(_FOOTER.pack(start, len(text), total, b"", _MAGIC))
    file.flush()


def _append(file: IO[bytes], array: Array) -> int:
    """Write an array and padding; returns where it starts."""
    start = file.tell()
    file.write(np.ascontiguousarray(array).data)
    file.write(bytes(-array.nbytes % _ALIGNMENT))
    return start


def read_packed(path: Path) -> dict[Part, Packed]:
    """Map a file; the arrays are read-only views, whose pages all processes share.

    Raises:
        OSError: it is not there.
        Damaged: it was cut short or changed.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < _FOOTER.size:
            raise Damaged("it is too short")
        memory = _map(file)
    content = np.frombuffer(memory, np.uint8)[: -_FOOTER.size]
    start, length, expected, _, magic = _FOOTER.unpack(memory[-_FOOTER.size :])
    if magic != _MAGIC or content.size % _ALIGNMENT:
        raise Damaged("its end is missing")
    if checksum(content) != expected:
        raise Damaged("its checksum is wrong")
    directory = json.loads(memory[start : start + length])
    for *_, name, shape, first in directory:
        if name is None:
            _forget(memory, first, 4 * int(np.prod(shape)))
    return {(layer, part, kind): _view(content, *rest) for layer, part, kind, *rest in directory}


def _map(file: IO[bytes]) -> mmap.mmap:
    # MAP_POPULATE reads all pages at once: SmolLM2's 98 MB would cause 25,000 page faults, which take longer.
    return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)


def _forget(memory: mmap.mmap, start: int, size: int) -> None:
    """Drop the pages of a rotary table from memory: a page that is read is loaded again, and most positions never
    are."""
    first, last = -(-start // mmap.PAGESIZE), (start + size) // mmap.PAGESIZE
    if last > first:
        memory.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def _view(content: Array, name: str | None, shape: list[int], start: int) -> Packed:
    if name is None:
        return content[start:].view(np.float32)[: int(np.prod(shape))].reshape(shape)
    n, k = shape
    stored = packed_shape(name, n, k)
    return PackedWeight(name, n, k, content[start : start + int(np.prod(stored))].reshape(stored))
