"""Files and batches as their callers see them: each finds its own alone, and all of it is bounded.

The database says what there is; a file without a row in it is what a crash has left, and goes (`tidied`).
`work` has what gateways do with the batches.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.batches.nouns import UNFINISHED, Batch, StoredFile, StoreSettings

MAX_FILES = 10_000
"""Files of a caller."""
MAX_UNFINISHED = 20
"""Batches of a caller that are not finished, and five times as many of all."""
MAX_BATCHES = 1000
"""Batches of a caller; the oldest finished one makes room for another."""

TABLES = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, purpose TEXT NOT NULL, size INTEGER NOT NULL,
    created INTEGER NOT NULL, expires INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of ON files (owner, created);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, input TEXT NOT NULL, endpoint TEXT NOT NULL, status TEXT NOT NULL,
    created INTEGER NOT NULL, expires INTEGER NOT NULL, output TEXT, error TEXT, ending TEXT,
    model TEXT NOT NULL DEFAULT '', total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, facts TEXT NOT NULL, worker TEXT, held INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS batches_of ON batches (owner, created);
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, start INTEGER NOT NULL,
    size INTEGER NOT NULL, place INTEGER NOT NULL, due REAL NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0, worker TEXT, status INTEGER, answer BLOB, PRIMARY KEY (batch, number)
);
CREATE INDEX IF NOT EXISTS waiting ON lines (batch, place) WHERE status IS NULL AND worker IS NULL;
CREATE INDEX IF NOT EXISTS leased ON lines (worker, batch) WHERE worker IS NOT NULL;
CREATE TABLE IF NOT EXISTS workers (id TEXT PRIMARY KEY, until REAL NOT NULL);
"""

_BATCH = "id, owner, input, endpoint, status, created, expires, output, error, ending, model, total, completed, failed"
_UNFINISHED = f"status IN {UNFINISHED}"


class Full(BadRequest):
    """A caller has as much as it may, or all have."""


def batch_of(row: Iterable[Any]) -> Batch:
    """A batch from the columns of `select_batches`."""
    names = [*_BATCH.split(", "), "facts"]
    found = dict(zip(names, row, strict=True))
    return Batch(**{**found, "facts": json.loads(found["facts"])})


def select_batches(db: sqlite3.Connection, where: str, *values: object) -> list[Batch]:
    """Batches that meet a condition."""
    return [batch_of(row) for row in db.execute(f"SELECT {_BATCH}, facts FROM batches WHERE {where}", values)]


def _file_of(row: Iterable[Any]) -> StoredFile:
    names = "id", "owner", "name", "purpose", "size", "created", "expires"
    return StoredFile(**dict(zip(names, row, strict=True)))


# ── files ──


def check_room(db: sqlite3.Connection, owner: str, size: int, settings: StoreSettings) -> None:
    """Raise `Full` if no file of so many bytes may be added."""
    files, own = db.execute("SELECT COUNT(*), TOTAL(size) FROM files WHERE owner = ?", (owner,)).fetchone()
    if files >= MAX_FILES:
        raise Full(f"{MAX_FILES} files are yours already: delete some", "file")
    if own + held(db, owner) + size > settings.owner_bytes:
        raise Full(f"your files may have {settings.owner_bytes} bytes together: delete some", "file")
    if held(db) + db.execute("SELECT TOTAL(size) FROM files").fetchone()[0] + size > settings.total_bytes:
        raise Full("the server's room for files is used up: try again later", "file")


def held(db: sqlite3.Connection, owner: str | None = None) -> float:
    """Bytes of answers that wait for their file, of an owner or of all."""
    where, values = ("", ()) if owner is None else ("WHERE owner = ?", (owner,))
    total: float = db.execute(f"SELECT TOTAL(held) FROM batches {where}", values).fetchone()[0]
    return total


def add_file(db: sqlite3.Connection, file: StoredFile, settings: StoreSettings) -> None:
    """Keep a file that was uploaded.

    Raises:
        Full: there is no room for it.
    """
    check_room(db, file.owner, file.size, settings)
    insert_file(db, file)


def insert_file(db: sqlite3.Connection, file: StoredFile) -> None:
    """Keep a file, whatever there is."""
    values = file.id, file.owner, file.name, file.purpose, file.size, file.created, file.expires
    db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def get_file(db: sqlite3.Connection, owner: str, file_id: str, now: float) -> StoredFile | None:
    """A file of this owner that has not expired."""
    query = "SELECT * FROM files WHERE id = ? AND owner = ? AND expires > ?"
    row = db.execute(query, (file_id, owner, now)).fetchone()
    return None if row is None else _file_of(row)


def list_files(
    db: sqlite3.Connection, owner: str, purpose: str | None, after: str | None, limit: int, newest: bool
) -> list[StoredFile] | None:
    """Up to so many of an owner's files; None: there is no file `after`."""
    way, order = ("<", "DESC") if newest else (">", "ASC")
    where, values = "owner = ?", [owner]
    if purpose is not None:
        where, values = f"{where} AND purpose = ?", [*values, purpose]
    if after is not None:
        if db.execute("SELECT 1 FROM files WHERE id = ? AND owner = ?", (after, owner)).fetchone() is None:
            return None
        where = f"{where} AND rowid {way} (SELECT rowid FROM files WHERE id = ?)"
        values = [*values, after]
    rows = db.execute(f"SELECT * FROM files WHERE {where} ORDER BY rowid {order} LIMIT ?", (*values, limit))
    return [_file_of(row) for row in rows]


def delete_file(db: sqlite3.Connection, owner: str, file_id: str) -> bool:
    """Forget a file; returns whether there was one.

    Raises:
        BadRequest: a batch that is not finished reads it.
    """
    reads = db.execute(f"SELECT id FROM batches WHERE input = ? AND owner = ? AND {_UNFINISHED}", (file_id, owner))
    if (batch := reads.fetchone()) is not None:
        raise BadRequest(f"the batch {batch[0]} reads it: cancel that first", "file_id")
    return bool(db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner)).rowcount)


def tidied(db: sqlite3.Connection, now: float) -> set[str]:
    """Forget files that have expired and that no batch reads; returns the ids of all others."""
    db.execute(
        f"DELETE FROM files WHERE expires <= ? AND id NOT IN (SELECT input FROM batches WHERE {_UNFINISHED})", (now,)
    )
    return {row[0] for row in db.execute("SELECT id FROM files")}


# ── batches ──


def add_batch(db: sqlite3.Connection, batch: Batch, now: float) -> None:
    """Begin a batch.

    Raises:
        BadRequest: the owner has no such file; Full: too many are not finished.
    """
    file = get_file(db, batch.owner, batch.input, now)
    if file is None or file.purpose != "batch":
        raise BadRequest(f"there is no file {batch.input!r:.80} of purpose batch", "input_file_id")
    count = "SELECT COUNT(*) FROM batches WHERE"
    of_owner = db.execute(f"{count} owner = ? AND {_UNFINISHED}", (batch.owner,)).fetchone()[0]
    if of_owner >= MAX_UNFINISHED or db.execute(f"{count} {_UNFINISHED}").fetchone()[0] >= 5 * MAX_UNFINISHED:
        raise Full(f"{of_owner} batches of yours are not finished: wait for them, or cancel some")
    values = batch.id, batch.owner, batch.input, batch.endpoint, batch.status, batch.created, batch.expires
    db.execute(
        "INSERT INTO batches (id, owner, input, endpoint, status, created, expires, facts) VALUES (?,?,?,?,?,?,?,?)",
        (*values, json.dumps(batch.facts)),
    )
    db.execute(
        f"DELETE FROM batches WHERE owner = ? AND NOT {_UNFINISHED} AND rowid NOT IN "
        "(SELECT rowid FROM batches WHERE owner = ? ORDER BY rowid DESC LIMIT ?)",
        (batch.owner, batch.owner, MAX_BATCHES),
    )


def get_batch(db: sqlite3.Connection, owner: str, batch_id: str) -> Batch | None:
    """A batch of this owner."""
    return next(iter(select_batches(db, "id = ? AND owner = ?", batch_id, owner)), None)


def list_batches(db: sqlite3.Connection, owner: str, after: str | None, limit: int) -> list[Batch] | None:
    """Up to so many of an owner's batches, the last first; None: there is no batch `after`."""
    where, values = "owner = ?", [owner]
    if after is not None:
        if get_batch(db, owner, after) is None:
            return None
        where, values = f"{where} AND rowid < (SELECT rowid FROM batches WHERE id = ?)", [owner, after]
    return select_batches(db, f"{where} ORDER BY rowid DESC LIMIT {limit:d}", *values)


def cancel_batch(db: sqlite3.Connection, owner: str, batch_id: str, now: int) -> Batch | None:
    """End a batch that is not ending already; returns it as it is then."""
    db.execute(
        "UPDATE batches SET status = 'cancelling', ending = 'cancelled', facts = json_set(facts, '$.cancelling_at', ?) "
        "WHERE id = ? AND owner = ? AND ending IS NULL AND status IN ('validating', 'in_progress')",
        (now, batch_id, owner),
    )
    return get_batch(db, owner, batch_id)
