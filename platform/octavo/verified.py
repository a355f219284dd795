"""Checks files against a SHA-256 sum: once (0.14 s for the quickstart's 98 MB), and again after a file has changed.

The sum that was computed is kept in the cache folder, under a key of the file's path, size, times and inode.
"""

from __future__ import annotations

import functools
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from octavo.errors import ModelError
from octavo.model_files import reading
from octavo_kernels.native.cache import own_file, with_cache


def verify(file: Path, wanted: str, name: str) -> None:
    """Return if a file has the SHA-256 sum `wanted`, in hex.

    Raises:
        ModelError: its sum differs, or it cannot be read. The message calls the file `name`.
    """
    if (found := sum_of(file)) != wanted.lower():
        raise ModelError(
            f"the weights of {name!r} are not the expected ones: their SHA-256 sum is {found}, not {wanted}"
        )


def sum_of(file: Path) -> str:
    """The SHA-256 sum of a file, in hex.

    Raises:
        ModelError: it cannot be read.
    """
    with reading(file):
        status = file.stat()
        identity = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return _sum(file.resolve(), identity)


@functools.lru_cache(maxsize=64)
def _sum(file: Path, identity: tuple[int, ...]) -> str:
    key = hashlib.sha256(f"{file} {identity}".encode()).hexdigest()[:32]
    try:
        return with_cache(lambda folder: _remembered(folder / "verified" / key, file))
    except OSError:  # no place to remember it
        return _computed(file)


def _remembered(note: Path, file: Path) -> str:
    if own_file(note):
        with suppress(OSError):
            return note.read_text()
    note.parent.mkdir(parents=True, exist_ok=True)
    found = _computed(file)
    new = note.with_suffix(f".{os.getpid()}.tmp")
    new.write_text(found)
    new.chmod(0o644)
    new.rename(note)
    return found


def _computed(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
