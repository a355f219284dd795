"""Records of requests: raw facts with times, one JSON object per line. Every figure is derived from them.

Times are nanoseconds since the start of the run (`time.perf_counter_ns`, one clock for all processes of a machine).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

TOKEN_KINDS = ("text", "reasoning", "tool")


class Chunk(NamedTuple):
    """One server-sent event."""

    at: int  # ns: when the bytes that completed it were read from the socket
    kind: str  # text | reasoning | tool | empty (choices, but nothing in them) | usage | error | other
    characters: int
    completion_tokens: int | None  # so far, as the server or a tokenizer counts; None: nobody does


@dataclass(slots=True)
class Record:
    """One request, from the plan to its last byte."""

    index: int
    session: str
    turn: int
    process: int
    planned_prompt_tokens: int
    planned_output_tokens: int
    planned_cached_tokens: int  # prompt tokens that the workload intends to share with earlier requests
    scheduled: int
    sent: int | None  # before a connection was requested, after any wait in the client; None: it was due and never sent
    connected: int | None = None  # None: an open connection was reused
    first_byte: int | None = None
    end: int | None = None  # the last byte, or when it failed
    status: int | None = None
    error: str | None = None  # None: the answer is complete
    finish_reason: str | None = None
    done: bool = False  # [DONE] came
    usage: dict[str, Any] | None = None
    tokenized: int | None = None  # tokens of the answer's text, where a tokenizer was given
    chunks: list[Chunk] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # x-* of the answer, and retry-after

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def prompt_tokens(self) -> int | None:
        return _count(self.usage, "prompt_tokens")

    @property
    def output_tokens(self) -> int:
        """The server's count, or the tokenizer's, or the number of chunks that are not empty."""
        counts = _count(self.usage, "completion_tokens"), self.tokenized
        return next((count for count in counts if count is not None), len(self.token_chunks))

    @property
    def counted_by(self) -> str:
        """Who says how many tokens the answer has: server, tokenizer or chunks."""
        if _count(self.usage, "completion_tokens") is not None:
            return "server"
        return "chunks" if self.tokenized is None else "tokenizer"

    @property
    def cached_tokens(self) -> int | None:
        return _count((self.usage or {}).get("prompt_tokens_details"), "cached_tokens")

    @property
    def token_chunks(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.kind in TOKEN_KINDS]


def _count(counts: Any, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else None


def dump(record: Record) -> str:
    """One line of JSON."""
    return json.dumps(asdict(record), separators=(",", ":"))


def load(path: Path) -> Iterator[Record]:
    """The records of a file, in the order they finished."""
    with path.open() as lines:
        for line in lines:
            fields = json.loads(line)
            yield Record(**{**fields, "chunks": [Chunk(*chunk) for chunk in fields["chunks"]]})


def save(path: Path, records: Iterable[Record]) -> None:
    with path.open("w") as file:
        file.writelines(dump(record) + "\n" for record in records)
