"""The records of batches: a file, a batch that reads one, its lines, and what a gateway that works on them is told."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo_serve.api.usage import Usage

Purpose = Literal["batch", "batch_output"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Outcome = Literal["completed", "failed", "refused", "left"]
"""What becomes of a line: an answer, an error, another try later, or somebody else's work."""
Ending = Literal["completed", "expired", "cancelled"]

UNFINISHED: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")


def new_id(kind: str) -> str:
    """A name that nobody has had, and nobody guesses."""
    return f"{kind}{'-' if kind == 'file' else '_'}{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where batches are, and how much of them.

    Attributes:
        folder: of the files and of the database of everything else.
        file_bytes: of one file that is uploaded.
        owner_bytes, total_bytes: of a caller's files, and of everybody's, answers that wait for their file included.
        lines_per_second: that all gateways begin at most; None: as many as the machine has cores for.
    """

    folder: Path
    file_bytes: int = 200 * 2**20
    owner_bytes: int = 2**32
    total_bytes: int = 2**34
    lines_per_second: float | None = None

    @property
    def database(self) -> Path:
        """Of everything but the files."""
        return self.folder / "batches.sqlite"

    def path(self, file_id: str) -> Path:
        """Of a file; its id was made here, so that no name of a client's is part of a path."""
        return self.folder / f"{file_id}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file; `created` and `expires` are seconds since 1970."""

    id: str
    owner: str
    name: str
    purpose: Purpose
    size: int
    created: int
    expires: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is asked of the lines of a file.

    Attributes:
        input: id of the file.
        output, error: ids of the files with what came of it, once they are there.
        ending: what it will be once it is finalized; None: it goes on.
        model: that all lines name; "" for none.
        facts: JSON that only its client reads: times, metadata, errors of its lines.
    """

    id: str
    owner: str
    input: str
    endpoint: str
    status: Status
    created: int
    expires: int
    output: str | None = None
    error: str | None = None
    ending: Ending | None = None
    model: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a batch's file, checked.

    Attributes:
        number: in the file, from 1 on.
        start, size: of its bytes in the file.
    """

    number: int
    custom_id: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Leased:
    """A line that one gateway works on, and no other; `tries` were refused so far."""

    batch: Batch
    line: Line
    tries: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a leased line.

    Attributes:
        status: of the answer; None: it is to be tried again.
        answer: a line of the output or error file.
        due: when to try again, in seconds since 1970, after one more refusal; None: nothing was tried.
        usage: what was done for it.
    """

    batch: str
    number: int
    status: int | None = None
    answer: bytes = b""
    due: float | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a gateway has to say in its turn, and what it can take.

    Attributes:
        worker: its name, of this start.
        rooms: batch -> lines that it can take.
        room_bytes: of all these lines.
        chores: whether it can prepare or finalize a batch.
    """

    worker: str
    results: list[Result]
    rooms: dict[str, int]
    room_bytes: int
    chores: bool


@dataclass(slots=True)
class Turn:
    """What a gateway has to do.

    Attributes:
        lines: that it works on from now on.
        chore: a batch to prepare, or to finalize if it is ending.
        over: batches whose lines are to be left.
        running: batches with lines to be worked on.
        workers: gateways that take turns.
        waiting: lines that nobody works on yet.
        batches: number by status.
    """

    lines: list[Leased] = field(default_factory=list)
    chore: Batch | None = None
    over: set[str] = field(default_factory=set)
    running: list[Batch] = field(default_factory=list)
    workers: int = 1
    waiting: int = 0
    batches: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Counts:
    """What a gateway's work on batches has come to, for metrics.

    Attributes:
        lines: by what became of them.
        batches: of all gateways, by status.
        waiting: lines that nobody works on yet.
        running: lines that are under way here.
    """

    lines: Counter[Outcome] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    running: int = 0
