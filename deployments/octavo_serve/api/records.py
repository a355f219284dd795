"""`Records`: what a gateway keeps of requests between them, in one sqlite file with a bound in bytes and in time.

A record belongs to the caller whose request made it, and is found by that caller alone. Several gateways may use one
file. Records are found again after a restart if the file has a path; without one it is a private temporary file that
ends with the process. Values are bytes that this module does not look into.
"""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from octavo.errors import BadRequest
from octavo_serve.api.database import Database

T = TypeVar("T")

OVERHEAD = 512
"""Bytes of a record beside what it holds: its row, its place in the index, the rest of its last page."""
EVICTED = 64
"""Records that are looked at in one go when room is made."""
USE_SECONDS = 1.0
"""Seconds after which a record's use is noted again: each note is a page to write."""

_TABLES = """
PRAGMA secure_delete = ON;
CREATE TABLE IF NOT EXISTS records (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, used REAL NOT NULL, size INTEGER NOT NULL, previous TEXT,
    body BLOB NOT NULL, extra BLOB NOT NULL, alive REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON records (used, size);
CREATE TABLE IF NOT EXISTS totals (id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL);
INSERT OR IGNORE INTO totals VALUES (0, 0);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON records BEGIN UPDATE totals SET size = size + new.size; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON records BEGIN UPDATE totals SET size = size - old.size; END;
CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY CHECK (id = 0), value BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is kept under an id.

    Attributes:
        owner: name of the caller that it belongs to.
        previous: id of the record that it goes on from; None for none.
        body, extra: its content; `extra` is left out where a chain is read.
        alive: when whoever still works on it last said so; in seconds since 1970, and 0 where nobody does.
    """

    id: str
    owner: str
    previous: str | None = None
    body: bytes
    extra: bytes = b""
    alive: float = 0.0

    @property
    def size(self) -> int:
        """Bytes that it is counted with."""
        return OVERHEAD + len(self.body) + len(self.extra)


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Where records are, and for how long.

    Attributes:
        path: of the file; None for a private temporary one.
        max_bytes: of all records; those that were not used for longest go first.
        ttl_s: seconds after its last use after which a record is gone.
    """

    path: Path | None = None
    max_bytes: int = 2**28
    ttl_s: float = 30 * 86400.0


class Records:
    """The records of one application, as one gateway sees them. Nothing is opened before it is needed.

    Attributes:
        clock: seconds since 1970.
    """

    def __init__(self, settings: RecordSettings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings or RecordSettings()
        self.clock = clock
        self._database = Database("stored responses", _TABLES)
        self._private: Path | None = None
        self._secret: tuple[Path, bytes] | None = None

    async def put(self, record: Record, *, replaces: bool | bytes = False) -> bool:
        """Keep a record, and make room for it.

        Args:
            replaces: only if there is one under its id, which goes; if it is bytes, one with this body.

        Returns:
            whether it is kept.

        Raises:
            BadRequest: it is larger than all records may be together.
            Overloaded: too many operations wait.
        """
        if record.size > self.settings.max_bytes:
            raise BadRequest(
                f"the response has {record.size} bytes; this server keeps {self.settings.max_bytes} in all: "
                "send store: false",
                "store",
            )
        return await self._run(_put, record, self.settings.max_bytes, self.clock(), replaces)

    async def get(self, owner: str, record_id: str) -> Record | None:
        """A record; None if there is none of this owner."""
        return await self._run(_get, owner, record_id, self.clock(), self.settings.ttl_s)

    async def chain(self, owner: str, record_id: str, most: int, most_bytes: int) -> list[Record]:
        """A record and those that it goes on from, the last first; only the first has its `extra`.

        It ends early at what is gone. All of them count as used now.

        Raises:
            BadRequest: they are more than `most`, or have more bytes.
        """
        return await self._run(_chain, owner, record_id, (most, most_bytes), self.clock(), self.settings.ttl_s)

    async def delete(self, owner: str, record_id: str) -> bool:
        """Remove a record; returns whether there was one."""
        return await self._run(_delete, owner, record_id)

    async def live(self, owner: str, record_id: str) -> bytes | None:
        """Say that somebody works on a record; returns its body, and None if it is gone."""
        return await self._run(_live, owner, record_id, self.clock())

    async def secret(self) -> bytes:
        """32 random bytes, the same for everybody who uses the file."""
        if self._secret is None or self._secret[0] != self._path:
            path = self._path
            self._secret = path, await self._database.run(path, _secret)
        return self._secret[1]

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await self._database.run(self._path, work, *args)

    @property
    def _path(self) -> Path:
        if self.settings.path is None and self._private is None:
            self._private = _private(self)
        path = self.settings.path or self._private
        assert path is not None
        return path


def _private(owner: object) -> Path:
    """A new file that is removed with its folder when `owner` or the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="octavo-records-")
    weakref.finalize(owner, folder.cleanup)
    return Path(folder.name) / "records.sqlite"


# ── operations, each in a transaction ──


def _put(connection: sqlite3.Connection, record: Record, max_bytes: int, now: float, replaces: bool | bytes) -> bool:
    where, named = "id = ? AND owner = ?", (record.id, record.owner)
    if isinstance(replaces, bytes):
        found = connection.execute(f"DELETE FROM records WHERE {where} AND body = ?", (*named, replaces))
    else:
        found = connection.execute(f"DELETE FROM records WHERE {where}", named)
    if replaces is not False and not found.rowcount:
        return False
    _make_room(connection, max_bytes - record.size)
    values = record.id, record.owner, now, record.size, record.previous, record.body, record.extra
    connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, record.alive))
    return True


def _make_room(connection: sqlite3.Connection, most: int) -> None:
    """Remove what was not used for longest until all records have at most so many bytes."""
    while (total := connection.execute("SELECT size FROM totals").fetchone()[0]) > most:
        oldest = connection.execute("SELECT rowid, size FROM records ORDER BY used LIMIT ?", (EVICTED,)).fetchall()
        for row, size in oldest:
            connection.execute("DELETE FROM records WHERE rowid = ?", (row,))
            total -= size
            if total <= most:
                return


def _forget(connection: sqlite3.Connection, now: float, ttl: float) -> None:
    connection.execute("DELETE FROM records WHERE used < ?", (now - ttl,))


def _get(connection: sqlite3.Connection, owner: str, record_id: str, now: float, ttl: float) -> Record | None:
    _forget(connection, now, ttl)
    row = connection.execute(
        "SELECT previous, body, extra, alive FROM records WHERE id = ? AND owner = ?", (record_id, owner)
    ).fetchone()
    if row is None:
        return None
    _touch(connection, record_id, now)
    return Record(id=record_id, owner=owner, previous=row[0], body=row[1], extra=row[2], alive=row[3])


def _live(connection: sqlite3.Connection, owner: str, record_id: str, now: float) -> bytes | None:
    where = "WHERE id = ? AND owner = ?"
    connection.execute(f"UPDATE records SET alive = ?, used = ? {where}", (now, now, record_id, owner))
    row = connection.execute(f"SELECT body FROM records {where}", (record_id, owner)).fetchone()
    return None if row is None else bytes(row[0])


def _touch(connection: sqlite3.Connection, record_id: str, now: float) -> None:
    connection.execute("UPDATE records SET used = ? WHERE id = ? AND used < ?", (now, record_id, now - USE_SECONDS))


def _chain(
    connection: sqlite3.Connection, owner: str, record_id: str, most: tuple[int, int], now: float, ttl: float
) -> list[Record]:
    _forget(connection, now, ttl)
    found: list[Record] = []
    size, next_id = 0, record_id
    while next_id is not None:
        extra = "extra" if not found else "x''"
        row = connection.execute(
            f"SELECT previous, body, {extra} FROM records WHERE id = ? AND owner = ?", (next_id, owner)
        ).fetchone()
        if row is None:
            break
        found.append(Record(id=next_id, owner=owner, previous=row[0], body=row[1], extra=row[2]))
        size += len(row[1])
        if len(found) > most[0] or size > most[1]:
            raise BadRequest("the conversation is too long to go on from: begin another one", "previous_response_id")
        _touch(connection, next_id, now)
        next_id = row[0]
    return found


def _delete(connection: sqlite3.Connection, owner: str, record_id: str) -> bool:
    found = connection.execute("DELETE FROM records WHERE id = ? AND owner = ?", (record_id, owner))
    return bool(found.rowcount)


def _secret(connection: sqlite3.Connection) -> bytes:
    connection.execute("INSERT OR IGNORE INTO secret VALUES (0, ?)", (secrets.token_bytes(32),))
    value: bytes = connection.execute("SELECT value FROM secret").fetchone()[0]
    return value
