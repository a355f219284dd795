"""What gateways do with batches, each operation in a transaction: the one place that says who works on what.

A gateway takes turns (`turn`). It says what became of its lines, and is given others; what it works on is leased to it
for `LEASE_SECONDS`, which each turn renews. Who takes no turns for so long has ended: its lines are given to others,
and what it says of them later is not taken. So a line has one answer, which is there once the turn that told it is.

    validating ── prepared ──> in_progress ── no line is left ──> finalizing ── finished ──> completed
        │                          │ cancelled, expired: no line is given out any more ─────> cancelled, expired
        └─ wrong lines ──> failed
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from octavo_serve.api.batches.nouns import (
    Asking,
    Batch,
    Leased,
    Line,
    Result,
    StoredFile,
    StoreSettings,
    Turn,
    new_id,
)
from octavo_serve.api.batches.reading import Read
from octavo_serve.api.batches.store import held, insert_file, select_batches

LEASE_SECONDS = 10.0
COUNTED_TOKENS = "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"
"""That are summed up over a batch's lines, as `Usage` names them."""
MAX_LOST = 16
"""Times that a gateway may end while it works on a line; then the line is given up, for it may be why."""


def turn(db: sqlite3.Connection, asking: Asking, now: float, settings: StoreSettings) -> Turn:
    """One gateway's turn: what it has done counts, and it gets more."""
    _renew(db, asking.worker, now)
    _record(db, asking.worker, asking.results)
    _end(db, int(now))
    over = db.execute(
        "SELECT DISTINCT batch FROM lines JOIN batches ON batches.id = batch "
        "WHERE lines.worker = ? AND ending IS NOT NULL",
        (asking.worker,),
    )
    found = Turn(over={row[0] for row in over})
    if asking.chores:
        found.chore = _chore(db, asking.worker)
    found.running = select_batches(db, "status = 'in_progress' AND ending IS NULL ORDER BY rowid")
    found.workers = db.execute("SELECT COUNT(*) FROM workers").fetchone()[0]
    found.waiting = sum(batch.total - batch.completed - batch.failed for batch in found.running)
    found.batches = Counter(dict(db.execute("SELECT status, COUNT(*) FROM batches GROUP BY status")))
    if held(db) + db.execute("SELECT TOTAL(size) FROM files").fetchone()[0] < settings.total_bytes:
        found.lines = list(_leased(db, asking, found.running, now))
    return found


def _renew(db: sqlite3.Connection, worker: str, now: float) -> None:
    for (gone,) in db.execute("SELECT id FROM workers WHERE until < ? AND id != ?", (now, worker)).fetchall():
        leave(db, gone, lost=1)
    until = db.execute("SELECT until FROM workers WHERE id = ?", (worker,)).fetchone()
    if until is None or until[0] < now + LEASE_SECONDS / 2:
        db.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (worker, now + LEASE_SECONDS))


def leave(db: sqlite3.Connection, worker: str, lost: int = 0) -> None:
    """A gateway ends, or has ended: what it works on is anybody's."""
    db.execute("DELETE FROM workers WHERE id = ?", (worker,))
    db.execute("UPDATE batches SET worker = NULL WHERE worker = ?", (worker,))
    db.execute("UPDATE lines SET worker = NULL, lost = lost + ? WHERE worker = ?", (lost, worker))


def _record(db: sqlite3.Connection, worker: str, results: Iterable[Result]) -> None:
    """Take in what became of lines that are this gateway's; of all others somebody else says it."""
    done = dict[str, list[Result]]()
    for result in results:
        where, named = "WHERE batch = ? AND number = ? AND worker = ?", (result.batch, result.number, worker)
        if result.status is None:
            later = result.due or 0.0, 0 if result.due is None else 1, *named
            db.execute(f"UPDATE lines SET worker = NULL, due = ?, tries = tries + ? {where}", later)
            continue
        answered = result.status, result.answer, *named
        if db.execute(f"UPDATE lines SET worker = NULL, status = ?, answer = ? {where}", answered).rowcount:
            done.setdefault(result.batch, []).append(result)
    for batch, those in done.items():
        _count(db, batch, those)


def _count(db: sqlite3.Connection, batch: str, done: list[Result]) -> None:
    """Count lines of a batch that have an answer."""
    (facts,) = db.execute("SELECT facts FROM batches WHERE id = ?", (batch,)).fetchone()
    tokens = Counter[str](json.loads(facts).get("usage"))
    for result in done:
        tokens.update({name: getattr(result.usage, name) for name in COUNTED_TOKENS})
    well = sum(200 <= result.status < 300 for result in done if result.status is not None)
    size = sum(len(result.answer) for result in done)
    update = "completed = completed + ?, failed = failed + ?, held = held + ?"
    update = f"UPDATE batches SET {update}, facts = json_set(facts, '$.usage', json(?)) WHERE id = ?"
    db.execute(update, (well, len(done) - well, size, json.dumps(tokens), batch))


def _end(db: sqlite3.Connection, now: int) -> None:
    """Give out no more lines of batches that have expired, or have none left."""
    over = "UPDATE batches SET status = 'finalizing', facts = json_set(facts, '$.finalizing_at', ?), ending ="
    db.execute(f"{over} 'completed' WHERE status = 'in_progress' AND completed + failed = total", (now,))
    db.execute(f"{over} 'expired' WHERE status IN ('validating', 'in_progress') AND expires <= ?", (now, now))


def _chore(db: sqlite3.Connection, worker: str) -> Batch | None:
    """The oldest batch that is to be prepared or finalized, and nobody's: it is this gateway's from now on."""
    found = select_batches(
        db,
        "worker IS NULL AND (status = 'validating' OR (status IN ('finalizing', 'cancelling') AND id NOT IN "
        "(SELECT batch FROM lines WHERE worker IS NOT NULL))) ORDER BY rowid LIMIT 1",
    )
    for batch in found:
        db.execute("UPDATE batches SET worker = ? WHERE id = ?", (worker, batch.id))
        return batch
    return None


def _leased(db: sqlite3.Connection, asking: Asking, running: list[Batch], now: float) -> Iterator[Leased]:
    """Lines to work on, the first of each batch."""
    room_bytes = asking.room_bytes
    for batch in running:
        most = max(0, asking.rooms.get(batch.id, 0))  # a limit below 0 is none
        for leased, lost in _first(db, batch, most, now):
            if (room_bytes := room_bytes - leased.line.size) < 0:
                return
            db.execute(
                "UPDATE lines SET worker = ? WHERE batch = ? AND number = ?",
                (asking.worker, batch.id, leased.line.number),
            )
            if lost >= MAX_LOST:
                sentence = f"the server ended {lost} times while it worked on this line"
                failed = refusal(leased.line.custom_id, "server_error", sentence)
                _record(db, asking.worker, [Result(batch.id, leased.line.number, 500, failed)])
            else:
                yield leased


def _first(db: sqlite3.Connection, batch: Batch, most: int, now: float) -> list[tuple[Leased, int]]:
    rows = db.execute(
        "SELECT number, custom_id, start, size, tries, lost FROM lines WHERE batch = ? AND status IS NULL "
        "AND worker IS NULL AND due <= ? ORDER BY place LIMIT ?",
        (batch.id, now, most),
    )
    return [(Leased(batch, Line(*row[:4]), row[4]), row[5]) for row in rows.fetchall()]


def prepared(db: sqlite3.Connection, worker: str, batch_id: str, read: Read, now: int) -> None:
    """A batch's file was read: its lines can be worked on, or it has failed."""
    where, named = "WHERE id = ? AND worker = ? AND ending IS NULL", (batch_id, worker)
    if read.errors:
        facts = "json_set(facts, '$.errors', json(?), '$.failed_at', ?)"
        values = json.dumps({"object": "list", "data": read.errors}), now
        found = db.execute(f"UPDATE batches SET status = 'failed', facts = {facts} {where}", (*values, *named))
    else:
        facts = "json_set(facts, '$.in_progress_at', ?)"
        update = f"UPDATE batches SET status = 'in_progress', model = ?, total = ?, facts = {facts} {where}"
        found = db.execute(update, (read.model, len(read.lines), now, *named))
    if found.rowcount:
        rows = ((batch_id, line.number, line.custom_id, line.start, line.size, n) for n, line in enumerate(read.lines))
        insert = "INSERT INTO lines (batch, number, custom_id, start, size, place) VALUES (?, ?, ?, ?, ?, ?)"
        db.executemany(insert, () if read.errors else rows)
    let_go(db, worker, batch_id)


def let_go(db: sqlite3.Connection, worker: str, batch_id: str) -> None:
    """A chore is anybody's again."""
    db.execute("UPDATE batches SET worker = NULL WHERE id = ? AND worker = ?", (batch_id, worker))


def answers(db: sqlite3.Connection, batch: Batch, after: int, most: int) -> list[tuple[int, bool, bytes]]:
    """Lines of a batch that ends, as its files have them: number, whether it went well, the line.

    Those that were not done are only there of one that has expired.
    """
    rows = db.execute(
        "SELECT number, custom_id, status, answer FROM lines WHERE batch = ? AND number > ? "
        "AND (status IS NOT NULL OR ?) ORDER BY number LIMIT ?",
        (batch.id, after, batch.ending == "expired", most),
    )
    sentence = "the line was not done before the batch expired"
    return [
        (number, status is not None and 200 <= status < 300, answer or refusal(custom_id, "batch_expired", sentence))
        for number, custom_id, status, answer in rows
    ]


def finished(
    db: sqlite3.Connection, worker: str, batch: Batch, output: StoredFile | None, error: StoredFile | None, now: int
) -> bool:
    """A batch's files are written; returns whether they are taken, which they are once."""
    facts = f"json_set(facts, '$.{batch.ending}_at', ?)"
    failed = "total - completed" if batch.ending == "expired" else "failed"
    ids = (None if file is None else file.id for file in (output, error))
    done = db.execute(
        f"UPDATE batches SET status = ending, output = ?, error = ?, failed = {failed}, held = 0, worker = NULL, "
        f"facts = {facts} WHERE id = ? AND worker = ?",
        (*ids, now, batch.id, worker),
    )
    if not done.rowcount:
        return False
    for file in (output, error):
        if file is not None:
            insert_file(db, file)
    db.execute("DELETE FROM lines WHERE batch = ?", (batch.id,))
    return True


def refusal(custom_id: str, code: str, message: str) -> bytes:
    """A line of an error file for what had no answer."""
    error = {"code": code, "message": message}
    return msgspec.json.encode({"id": new_id("batch_req"), "custom_id": custom_id, "response": None, "error": error})
