"""`Batches`: the files and batches of an application, as one gateway sees them; off while there is no folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar

from octavo.errors import OctavoError, Overloaded
from octavo_serve.api.batches import store
from octavo_serve.api.batches.nouns import Counts, StoredFile, StoreSettings
from octavo_serve.api.database import Database
from octavo_serve.api.failures import BodyTooLarge, NotKept
from octavo_serve.api.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

MAX_UPLOADS = 16
"""Files that a gateway takes in at once, four of them of one caller."""
UPLOAD_SECONDS = 3600.0
"""An upload that takes longer ends."""
NICE = 5
"""Of the threads that read and write files: the event loop goes first."""
READ = 2**18
"""Bytes of a file that are read at once."""


class Batches:
    """See the module.

    Attributes:
        settings: None: there are none here.
        clock: seconds since 1970.
        paths: that a batch may be for.
        changed: set when there may be something to do.
        threads: for work on files.
        counts: of the work.
    """

    def __init__(self, counts: Counts) -> None:
        self.settings: StoreSettings | None = None
        self.clock: Callable[[], float] = time.time
        self.paths: frozenset[str] = frozenset()
        self.changed = asyncio.Event()
        self.threads = Threads(2, nice=NICE)
        self.counts = counts
        self._database = Database("batches", store.TABLES, "FULL")
        self._uploads: Counter[str] = Counter()

    @property
    def on(self) -> StoreSettings:
        """The settings.

        Raises:
            NotKept: there are none.
        """
        if self.settings is None:
            raise NotKept("this server keeps no files and runs no batches: set gateway.batches.folder")
        return self.settings

    async def run(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """An operation of `store` or `work` on the database."""
        return await self._database.run(self.on.database, work, *args, **kwargs)

    @contextlib.contextmanager
    def uploading(self, owner: str) -> Iterator[None]:
        """Count an upload while it comes in.

        Raises:
            Overloaded: too many come in.
        """
        if self._uploads.total() >= MAX_UPLOADS or self._uploads[owner] >= MAX_UPLOADS // 4:
            raise Overloaded("too many files are being uploaded already", retry_after=5.0)
        self._uploads[owner] += 1
        try:
            yield
        finally:
            self._uploads[owner] -= 1

    async def write(self, file_id: str, chunks: AsyncIterator[bytes]) -> int:
        """Write a file whole, so that a crash leaves all of it or none; an empty one is not kept. Returns its bytes."""
        with self.partial(file_id) as part:
            async for chunk in chunks:
                await self.threads.finish(part.write, chunk)
            return await self.threads.finish(part.keep) if part.size else 0

    def partial(self, file_id: str) -> Partial:
        """A file that is being written."""
        return Partial(self.on, file_id)

    async def read(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """A file's bytes."""
        opened: BinaryIO = await self.threads.finish(self.on.path(file.id).open, "rb")
        with opened:
            while chunk := await self.threads.finish(opened.read, READ):
                yield chunk

    async def tidy(self) -> None:
        """Remove files that have expired, and what crashes have left."""
        known = await self.run(store.tidied, self.clock())
        await self.threads.finish(_remove_others, self.on.folder, known)


class Partial:
    """A file that is written beside its place, and gone unless it is kept.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, settings: StoreSettings, file_id: str) -> None:
        self.size = 0
        self._path = settings.path(file_id)
        self._part = self._path.with_suffix(".part")
        self._file = os.fdopen(os.open(self._part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb")

    def __enter__(self) -> Partial:
        return self

    def write(self, data: bytes, most: float = float("inf")) -> None:
        """Add bytes.

        Raises:
            BodyTooLarge: these are more than `most`; OctavoError: the disk is full.
        """
        self.size += len(data)
        if self.size > most:
            raise BodyTooLarge(f"the file has more than the accepted {most:.0f} bytes")
        with _disk():
            self._file.write(data)

    def keep(self) -> int:
        """Put it in its place, durably; returns its bytes."""
        with _disk():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._part.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self.size

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OctavoError(f"the file cannot be written: {error.strerror}") from error


OLD_SECONDS = 3600.0
"""Nobody writes a file any more whose last byte is so old."""


def _remove_others(folder: Path, known: set[str]) -> None:
    for path in [*folder.glob("file-*.jsonl"), *folder.glob("file-*.part")]:
        old = path.stat().st_mtime < time.time() - OLD_SECONDS
        if old and (path.suffix == ".part" or path.stem not in known):
            path.unlink(missing_ok=True)
