"""Finds the packed file of a checkpoint, and decides how long it is kept.

A packed file's name is made of the checkpoint's path, the variant of packing, and a version: a hash over the size and
times of the checkpoint's files (every write or replacement changes one of them) and over the code that packs. The
layout is the same for every instruction set. Whenever a packed file is written, others are removed: all but the newest
other version of the same checkpoint, those that no start has used for 30 days, and then the least recently used ones
until packed files take at most half of the disk space that would be free without them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import octavo_kernels.linear
from octavo.gguf_header import split_files
from octavo.models.packed_file import Damaged, Packed, Part, read_packed, write_packed
from octavo.source import Source
from octavo.verified import sum_of
from octavo_kernels.native.cache import cache_folder, lock, own_file, temporary_folder

logger = logging.getLogger(__name__)

SMALLEST = 1 << 24
"""Smallest checkpoint, in bytes, whose packed file is kept: packing a smaller one takes only 0.1 s."""

KEEP_DAYS = 30


def cached(source: Source, pack: Callable[[], Iterable[tuple[Part, Packed]]], variant: str) -> dict[Part, Packed]:
    """The parts that `pack()` yields, read from the packed file of an earlier start if there is one.

    Args:
        source: the checkpoint.
        pack: reads and packs the checkpoint.
        variant: tells apart the ways in which one checkpoint can be packed.

    If several processes start at once, one packs and the others wait for its file. If no file can be written, the parts
    are kept in memory, and a warning says why.

    Raises:
        what `pack` raises.
    """
    size = sum(file.stat().st_size for file in _files(source))
    if size < SMALLEST:
        return dict(pack())
    if cache_folder() == temporary_folder():  # often a file system in memory, and nothing there is ever removed
        logger.warning("packed weights are not kept on disk: there is no cache folder")
        return dict(pack())
    folder = cache_folder() / "packed"
    place = _place(source, variant)
    path = folder / f"{place}-{version(source)}.packed"
    try:
        if (found := _read(path)) is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f"{place}.lock"):
            return _read(path) or _write(path, pack, size)
    except OSError as error:
        logger.warning("packed weights are not kept on disk: %s", error)
        return dict(pack())


def _read(path: Path) -> dict[Part, Packed] | None:
    if path.exists() and not own_file(path):
        logger.warning("%s could have been written by others and is made anew", path)
        return None
    try:
        parts = read_packed(path)
    except FileNotFoundError:
        return None
    except Damaged as damage:
        logger.warning("%s is damaged and made anew: %s", path, damage)
        return None
    with contextlib.suppress(OSError):  # a cache that was filled elsewhere may be read-only
        path.touch()  # records the time of its last use
    return parts


def _write(path: Path, pack: Callable[[], Iterable[tuple[Part, Packed]]], size: int) -> dict[Part, Packed]:
    _make_room(path, size)
    write_packed(path, pack())
    logger.info("packed weights are kept in %s", path)
    return read_packed(path)


def _make_room(new: Path, size: int) -> None:
    """Remove packed files by the rules in this module's docstring.

    Raises:
        OSError: even then there is no room for `size` bytes.
    """
    now, place = time.time(), new.name.rpartition("-")[0]
    for abandoned in new.parent.glob("*.tmp"):  # left behind by a process that was killed
        if now - abandoned.stat().st_mtime > 86_400:
            abandoned.unlink(missing_ok=True)
    files = sorted(new.parent.glob("*.packed"), key=lambda file: file.stat().st_mtime, reverse=True)
    room = (shutil.disk_usage(new.parent).free + sum(file.stat().st_size for file in files)) // 2
    if size > room:
        raise OSError(f"{new.parent} has room for {room / 1e9:.1f} GB, and the model takes {size / 1e9:.1f} GB")
    total, siblings = size, 0
    for file in files:
        status, is_sibling = file.stat(), file.name.rpartition("-")[0] == place
        total += status.st_size
        siblings += is_sibling
        if total > room or now - status.st_mtime > KEEP_DAYS * 86_400 or (is_sibling and siblings > 1):
            file.unlink(missing_ok=True)


def _place(source: Source, variant: str) -> str:
    path = source.path.resolve()
    return f"{re.sub(r'[^A-Za-z0-9._]+', '_', path.name)[:60]}-{_digest(str(path))[:8]}-{variant}"


def version(source: Source) -> str:
    """Names the content of a checkpoint's files, and the code that reads and runs them."""
    identity = [(file.name, *_identity(file)) for file in _files(source)]
    return _digest(f"{_code()} {identity}")[:16]


def content(source: Source) -> str:
    """The same, by what is in the files: it is the same on every machine. Reads all of them, once."""
    return _digest(f"{_code()} {[(file.name, sum_of(file)) for file in _files(source)]}")[:16]


def _identity(file: Path) -> tuple[int, ...]:
    status = file.stat()
    # ctime cannot be set back, as mtime can
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _files(source: Source) -> list[Path]:
    if source.kind == "gguf":
        return split_files(source.path)
    files = (file for pattern in ("*.safetensors", "*.json") for file in source.path.glob(pattern))
    return sorted(file for file in files if file.is_file())


@functools.cache
def _code() -> str:
    folders = [Path(__file__).parent, Path(octavo_kernels.linear.__file__).parent]
    return _digest("\0".join(file.read_text() for folder in folders for file in sorted(folder.rglob("*.py"))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
