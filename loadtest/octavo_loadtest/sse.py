"""Answers of OpenAI's API: raw reads in, chunks with times out; or embeddings, which come whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from octavo_loadtest.record import Chunk

Read = tuple[int, bytes]  # when it was read (ns), what


@dataclass(slots=True)
class Stream:
    """The content of a stream."""

    chunks: list[Chunk] = field(default_factory=list)
    text: str = ""
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False


def events(reads: Iterable[Read]) -> Iterator[Read]:
    """The `data` of each event with the time of the read that completed it."""
    rest = b""
    for at, data in reads:
        *whole, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield at, b"\n".join(lines)


def parse(reads: Iterable[Read]) -> Stream:
    """Parse a whole stream. Data that is not JSON counts as a server error."""
    stream = Stream()
    parts: list[str] = []
    for at, data in events(reads):
        if data == b"[DONE]":
            stream.done = True
            continue
        try:
            body = json.loads(data)
        except ValueError:
            stream.error = f"not JSON: {data[:80]!r}"
            continue
        parts.append(_take(stream, at, body))
    stream.text = "".join(parts)
    return stream


def parse_embeddings(reads: Iterable[Read]) -> Stream:
    """Read a whole answer with vectors; one without any is a server error."""
    stream, data = Stream(), b"".join(data for _, data in reads)
    try:
        body = json.loads(data)
        stream.usage, vectors = body.get("usage"), [item["embedding"] for item in body["data"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        vectors = []
    if not vectors or not all(vectors):
        stream.error = f"no embeddings: {data[:80]!r}"
    stream.done, stream.finish_reason = True, "stop"
    return stream


def _take(stream: Stream, at: int, body: Any) -> str:
    """Add one event to the stream; returns its text."""
    if not isinstance(body, dict) or "error" in body:
        error = body.get("error") if isinstance(body, dict) else body
        stream.error = str(error.get("message", error) if isinstance(error, dict) else error)
        stream.chunks.append(Chunk(at, "error", 0, None))
        return ""
    usage = body.get("usage")
    if isinstance(usage, dict):
        stream.usage = usage
    kind, text = "other", ""
    for choice in body.get("choices") or ():
        kind, text = content(choice)
        stream.finish_reason = choice.get("finish_reason") or stream.finish_reason
    if kind == "other" and isinstance(usage, dict):
        kind = "usage"
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    stream.chunks.append(Chunk(at, kind, len(text), tokens))
    return text


def content(choice: dict[str, Any]) -> tuple[str, str]:
    """Kind and text of one choice, streamed or whole, of a chat or a completion."""
    delta = choice.get("delta") or choice.get("message") or {}
    if text := delta.get("content") or choice.get("text"):
        return "text", str(text)
    if text := delta.get("reasoning_content") or delta.get("reasoning"):
        return "reasoning", str(text)
    if calls := delta.get("tool_calls"):
        return "tool", json.dumps(calls)
    return "empty", ""
