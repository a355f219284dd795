"""A recording: a file of frames, in which somebody who decides writes what it saw and what it decided.

    octavo recording 1 engine\\n       the version of the format, and who writes
    length  frame  length  frame ...   4 bytes, little-endian; MessagePack

Frames are encoded and written by a thread. What cannot be written is never waited for: the recording ends there, with a
line in the log, and what it holds until then is whole.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import msgspec

from octavo.errors import ConfigError

logger = logging.getLogger(__name__)

MAGIC = "octavo recording 1 "
MOST_BYTES = 2**30
"""Of a file: a rehearsed 8B model with 64 streams writes so much in nine hours."""

MOST_WAITING = 2**13
"""Frames that wait for a disk: of a quick engine's steps those of 20 seconds."""

_LENGTH_BYTES = 4


class Frame(msgspec.Struct, array_like=True, gc=False):
    """Base of what is written; each kind has a tag."""


Write = Callable[[Frame], None]


class Recorder:
    """Writes one file, which its user alone can read.

    Args:
        folder: is made if it is not there.
        kind: who writes.
        most: bytes of the file.

    Raises:
        ConfigError: nothing can be written there.
    """

    def __init__(self, folder: str, kind: str, most: int = MOST_BYTES) -> None:
        self.path = Path(folder).expanduser() / f"{kind}-{os.getpid()}-{secrets.token_hex(4)}.rec"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"record: nothing can be written to {folder}: {error}") from None
        self._file, self._left = os.fdopen(opened, "wb"), most
        self._frames: SimpleQueue[Frame | None] = SimpleQueue()
        self._ended = False
        self._file.write(f"{MAGIC}{kind}\n".encode())
        self._thread = threading.Thread(target=self._run, name="octavo-recorder", daemon=True)
        self._thread.start()

    def write(self, frame: Frame) -> None:
        """Have a frame written, which nobody changes from now on."""
        if not self._ended:
            if self._frames.qsize() < MOST_WAITING:
                self._frames.put(frame)
            else:
                self.end(f"{MOST_WAITING} frames wait for the disk")

    def end(self, why: str) -> None:
        """Write no more than what waits."""
        self._ended = True
        self._frames.put(None)
        logger.warning("The recording %s ends here: %s", self.path, why)

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended = True
        self._frames.put(None)
        self._thread.join()

    def _run(self) -> None:
        encode = msgspec.msgpack.Encoder().encode
        try:
            with self._file as file:
                while (frame := self._frames.get()) is not None and self._put(file, encode(frame)):
                    if self._frames.empty():
                        file.flush()
        except OSError as error:
            self.end(str(error))

    def _put(self, file: BinaryIO, encoded: bytes) -> bool:
        self._left -= len(encoded) + _LENGTH_BYTES
        if fits := self._left >= 0:
            file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
        else:
            self.end("it is as long as it may be")
        return fits


def find_recordings(path: Path) -> list[Path]:
    """A recording, or those in a folder and the folders in it."""
    return sorted(path.rglob("*.rec")) if path.is_dir() else [path]


def kind_of(path: Path) -> str:
    """Who wrote a recording.

    Raises:
        ConfigError: it cannot be read, or is none that this version knows.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(80)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not line.startswith(MAGIC.encode()):
        raise ConfigError(f"{path} is no recording of this version of Octavo")
    return line[len(MAGIC) :].decode(errors="replace").strip()


def read_frames(path: Path) -> Iterator[bytes]:
    """The frames of a recording, encoded; of one that was cut off, those that are whole."""
    with path.open("rb") as file:
        file.readline(80)
        while len(head := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
            size = int.from_bytes(head, "little")
            if len(frame := file.read(size)) < size:
                return
            yield frame
