"""A file of slots, each of which holds one block: what is read is what was written under that hash, or nothing.

    [ format, padded to 4 KiB ][ per slot: hash 16, checksum 16 ][ slot 0 ][ slot 1 ] ...

A slot's entry is cleared before its bytes are written and set after them, so that a process that is killed in between
leaves a free slot. What a machine that loses power makes of the order is seen by the checksum: SHA-256 over the hash
and the bytes, cut to 16 bytes. With the CPU's instructions for it that is 2.0 GB/s a thread, BLAKE2b 0.9; a CRC of 32
bits would be 6.9 GB/s, and take one torn block in four billion for whole.

Bytes are read and written by pread and pwrite. Mapped, a file that somebody truncates and a disk that is full would end
the process (SIGBUS); here both are an error that is counted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from octavo.block_hash import HASH_BYTES
from octavo.kvcache.tier import Bytes

_HEAD = 4096
CHECK_BYTES = 16
"""Of a checksum."""
_ENTRY = HASH_BYTES + CHECK_BYTES
_FREE = bytes(_ENTRY)


def slots_within(num_bytes: int, slot_bytes: int) -> int:
    """Slots of a file that takes no more than so many bytes."""
    return (num_bytes - 2 * _HEAD) // (slot_bytes + _ENTRY)


class Damaged(Exception):
    """A slot does not hold what was written there."""


class SlotFile:
    """An open file, which no other process has open.

    Args:
        path: made, readable by its user alone, where there is none.
        form: what a block's bytes mean; a file of another form, or with other slots, is emptied.
        slot_bytes: of a block.
        num_slots: in the file.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be opened or written.
    """

    def __init__(self, path: Path, form: str, slot_bytes: int, num_slots: int) -> None:
        self.num_slots, self.slot_bytes = num_slots, slot_bytes
        self._first = _HEAD + -(-num_slots * _ENTRY // _HEAD) * _HEAD
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._begin(f"octavo kv 1\n{form}\n{slot_bytes} x {num_slots}\n".encode().ljust(_HEAD, b"\0"))
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self, head: bytes) -> None:
        assert len(head) == _HEAD, "the form is short"
        if os.pread(self._fd, _HEAD, 0) != head:
            os.ftruncate(self._fd, 0)
            self._put(head, 0)
        os.ftruncate(self._fd, self._first + self.num_slots * self.slot_bytes)  # with holes, which take no place

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """The slots that hold something, and its hash."""
        table = os.pread(self._fd, self.num_slots * _ENTRY, _HEAD)
        for slot in range(self.num_slots):
            entry = table[slot * _ENTRY : (slot + 1) * _ENTRY]
            if entry != _FREE:
                yield slot, entry[:HASH_BYTES]

    def read(self, slot: int, block_hash: bytes, into: Bytes) -> None:
        """Read a block.

        Raises:
            Damaged: it is not there as it was written.
            OSError: it cannot be read.
        """
        entry = os.pread(self._fd, _ENTRY, _HEAD + slot * _ENTRY)
        count = os.preadv(self._fd, [into.data], self._first + slot * self.slot_bytes)
        if count < self.slot_bytes or entry != block_hash + checksum(block_hash, into):
            raise Damaged(f"slot {slot} is damaged")

    def write(self, slot: int, block_hash: bytes, data: Bytes) -> None:
        """Put a block into a slot; what was there is gone, also where this fails.

        Raises:
            OSError: it cannot be written.
        """
        self.clear(slot)
        self._put(data.data, self._first + slot * self.slot_bytes)
        self._put(block_hash + checksum(block_hash, data), _HEAD + slot * _ENTRY)

    def clear(self, slot: int) -> None:
        """Forget what a slot holds.

        Raises:
            OSError: it cannot be written.
        """
        self._put(_FREE, _HEAD + slot * _ENTRY)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._fd)

    def _put(self, data: bytes | memoryview, place: int) -> None:
        if os.pwrite(self._fd, data, place) < len(data):  # all of it, but for a full disk and limits on a file's size
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove_unused(path: Path) -> None:
    """Remove such a file, unless somebody has it open or it cannot be removed."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


def checksum(block_hash: bytes, data: Bytes) -> bytes:
    """Tells whether a block is what was computed under its hash."""
    found = sha256(block_hash)
    found.update(data.data)
    return found.digest()[:CHECK_BYTES]
