"""Answers of OpenAI's API, as many servers write it: raw reads in, chunks with times out; embeddings come whole.

Servers differ: some send a role first, some with each chunk, some never; usage comes in a chunk of its own, with the
last choice, with each chunk, or not at all (llama.cpp then has `timings`); errors come as `data`, as an event of that
name, or as a field of that name. tests/loadtest has a stream of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from octavo_loadtest.record import Chunk

Read = tuple[int, bytes]  # when it was read (ns), what
Count = Callable[[list[str]], list[int]]  # passages that follow each other -> tokens until the end of each

GIVEN_UP = ("abort", "error", "cancelled")
"""Reasons to finish that are the server's fault: vLLM and SGLang say `abort`, TGI and others `error`."""


@dataclass(slots=True)
class Stream:
    """The content of a stream."""

    chunks: list[Chunk] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # of each chunk
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, chunk: Chunk, text: str = "") -> None:
        self.chunks.append(chunk)
        self.texts.append(text)

    def counted(self, count: Count) -> int:
        """Let a tokenizer count what the server did not; returns the tokens of the whole text."""
        totals = count(self.texts)
        if not any(chunk.completion_tokens is not None for chunk in self.chunks):
            self.chunks = [
                chunk._replace(completion_tokens=total) for chunk, total in zip(self.chunks, totals, strict=True)
            ]
        return totals[-1] if totals else 0


def events(reads: Iterable[Read]) -> Iterator[Read]:
    """The `data` of each event with the time of the read that completed it; errors under other names as `data` too."""
    rest = b""
    for at, data in reads:
        *whole, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            if payload := _payload(event):
                yield at, payload


def _payload(event: bytes) -> bytes:
    fields = [line.partition(b":") for line in event.split(b"\n")]
    data = b"\n".join(value.strip() for name, _, value in fields if name == b"data")
    if any(name == b"event" and value.strip() == b"error" for name, _, value in fields):
        return _as_error(data)
    bare = b"\n".join(value.strip() for name, _, value in fields if name == b"error")
    return data or (_as_error(bare) if bare else b"")


def _as_error(data: bytes) -> bytes:
    """`{"error": ...}`, whatever an error event holds."""
    try:
        body = json.loads(data)
    except ValueError:
        body = data.decode(errors="replace")
    return data if isinstance(body, dict) and "error" in body else json.dumps({"error": body}).encode()


def parse(reads: Iterable[Read]) -> Stream:
    """Parse a whole stream. Data that is not JSON counts as a server error."""
    stream = Stream()
    reads = list(reads)
    found = False
    for at, data in events(reads):
        found = True
        if data == b"[DONE]":
            stream.done = True
            continue
        try:
            body = json.loads(data)
        except ValueError:
            stream.error = f"not JSON: {data[:80]!r}"
            continue
        _take(stream, at, body)
    return stream if found else _unstreamed(reads)


def _unstreamed(reads: list[Read]) -> Stream:
    """What a server sends that knows no streams: the answer as JSON, all of it there when the last byte is."""
    stream = Stream()
    try:
        body = json.loads(b"".join(data for _, data in reads))
    except ValueError:
        return stream
    if isinstance(body, dict) and ("choices" in body or "error" in body):
        _take(stream, reads[-1][0], body)
        stream.done = True
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


def _take(stream: Stream, at: int, body: Any) -> None:
    """Add one event to the stream."""
    if not isinstance(body, dict) or body.get("error"):
        error = body.get("error") if isinstance(body, dict) else body
        stream.error = str(error.get("message", error) if isinstance(error, dict) else error)
        stream.add(Chunk(at, "error", 0, None))
        return
    usage = _usage(body)
    stream.usage = usage or stream.usage
    kind, text = "other", ""
    for choice in body.get("choices") or ():
        found, more = content(choice)
        kind, text = found if kind in ("other", "empty") else kind, text + more
        _finish(stream, choice.get("finish_reason"))
    if kind == "other" and usage is not None:
        kind = "usage"
    counted = (usage or {}).get("completion_tokens")
    stream.add(Chunk(at, kind, len(text), counted if isinstance(counted, int) else None), text)


def _finish(stream: Stream, reason: Any) -> None:
    stream.finish_reason = str(reason) if reason else stream.finish_reason
    if reason in GIVEN_UP:
        stream.error = f"finish_reason {reason}"


def _usage(body: dict[str, Any]) -> dict[str, Any] | None:
    """What the event says of tokens: OpenAI's `usage`, or llama.cpp's `timings` in its words."""
    usage, timings = body.get("usage"), body.get("timings")
    if isinstance(usage, dict):
        return usage
    if not isinstance(timings, dict) or not isinstance(timings.get("predicted_n"), int):
        return None
    cached = int(timings.get("cache_n") or 0)
    return {
        "prompt_tokens": cached + int(timings.get("prompt_n") or 0),
        "completion_tokens": timings["predicted_n"],
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def content(choice: dict[str, Any]) -> tuple[str, str]:
    """Kind and text of one choice, streamed or whole, of a chat or a completion."""
    delta = choice.get("delta") or choice.get("message") or {}
    if text := delta.get("content") or choice.get("text") or delta.get("refusal"):
        return "text", _plain(text)
    if text := delta.get("reasoning_content") or delta.get("reasoning"):
        return "reasoning", _plain(text)
    if calls := delta.get("tool_calls") or delta.get("function_call"):
        return "tool", json.dumps(calls)
    return "empty", ""


def _plain(text: Any) -> str:
    """Text, also where it comes in parts."""
    if isinstance(text, list):
        return "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    return str(text)
