"""A fake server of OpenAI's API with known delays and faults, and a log of what it did and when.

It tests clients, first of all this load tester. It uses the client's clock, so a test compares what the client saw with
what the server did, rather than with what a busy machine was supposed to do.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

BLOCK = 16  # tokens of a block of the simulated prefix cache


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The server's behaviour. `every_*` = k applies to requests with number k-1 modulo k; 0 means never."""

    ttft: float = 0.02  # s from a free slot to the first token, or to vectors
    itl: float = 0.005  # s between tokens
    coalesce: int = 1  # tokens in one chunk
    first: int = 1  # tokens in the first chunk
    slots: int = 0  # requests served at once, the others wait; 0: no limit
    role_chunk: bool = True  # an empty chunk as soon as a slot is free, as vLLM sends
    every_reject: int = 0  # HTTP 429
    every_truncated: int = 0  # the connection closes in the middle of a stream
    every_error_event: int = 0  # an `error` event after HTTP 200
    every_short: int = 0  # stops after half of the tokens
    every_empty: int = 0  # ends as it should, without a token
    stall_at: float = 0.0  # s after the first request: for `stall_for` seconds nothing is sent
    stall_for: float = 0.0
    overhead: int = 10  # tokens of the chat template
    cache: bool = False  # count cached tokens, in blocks of 16
    strict: bool = False  # refuse what is not in OpenAI's API, as OpenAI does
    usage: bool = True  # say how many tokens there were, where that is asked for
    loading: int = 0  # so many requests get a 503, for the model is not there yet
    key: str = ""  # a bearer token that requests must have; "": none
    replicas: tuple[int | None, ...] = ()  # what /health says one look after the other, then the last; None: nothing


@dataclass(slots=True)
class Served:
    """The log of one request. Times are in ns of `perf_counter_ns`."""

    name: str  # its X-Request-ID
    received: int
    tokens: int = 0  # asked for
    wrote: list[int] = field(default_factory=list)  # just before each chunk with tokens
    sent_tokens: int = 0
    fault: str | None = None


class FakeServer:
    """The server. Use `running(behaviour)` to have one on a free port of this machine."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.log: list[Served] = []
        self.url = ""
        self._slots = asyncio.Semaphore(behaviour.slots or 1_000_000)
        self._start = 0
        self._looks = self._asked = 0
        self._blocks: set[int] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> asyncio.Server:
        server = await asyncio.start_server(self._connection, host, port)
        self.url = f"http://{host}:{server.sockets[0].getsockname()[1]}"
        return server

    # ---- HTTP

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                received = perf_counter_ns()
                method, path, *_ = head.split(" ", 2)
                headers = dict(_header(line) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                name = headers.get("x-request-id", "")
                if self.behaviour.key and headers.get("authorization") != f"Bearer {self.behaviour.key}":
                    _reply(writer, 401, {"error": {"message": "no such key"}})
                elif not await self._answer(writer, method, path, body, Served(name, received)):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client has left, or the server ends
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes, served: Served) -> bool:
        """Answer one request; False ends the connection."""
        if path == "/health":
            self._say_health(writer)
            return True
        if method == "GET":
            _reply(writer, 200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
            return True
        self._asked += 1
        if self._asked <= self.behaviour.loading:
            _reply(writer, 503, {"error": {"message": "the model is loading"}})
            return True
        try:
            asked = json.loads(body)
            prompt = _prompt(asked, self.behaviour.overhead)
            served.tokens = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
            dict(asked.get("stream_options") or {})
        except (ValueError, TypeError, KeyError, AttributeError):
            _reply(writer, 400, {"error": {"message": "the body is no JSON, or no request"}})
            return True
        if self.behaviour.strict and "ignore_eos" in asked:
            _reply(writer, 400, {"error": {"message": "unrecognized request argument: ignore_eos"}})
            return True
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 0}
        if self.behaviour.cache:
            usage |= {"prompt_tokens_details": {"cached_tokens": self._cached(prompt)}}  # type: ignore[dict-item]
        if path.endswith("/embeddings"):
            return await self._embed(writer, served, usage)
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"content": "word"}, "text": "word", "finish_reason": "length"}
            _reply(writer, 200, {"choices": [choice], "usage": usage | {"completion_tokens": 1}})
            return True
        if served.name:
            self.log.append(served)
            self._start = self._start or served.received
        served.fault = self._fault(served)
        if served.fault == "reject":
            _reply(writer, 429, {"error": {"message": "busy"}}, "Retry-After: 1\r\n")
            return True
        async with self._slots:
            return await self._stream(writer, path.endswith("/chat/completions"), asked, usage, served)

    def _say_health(self, writer: asyncio.StreamWriter) -> None:
        counts = self.behaviour.replicas
        count = counts[min(self._looks, len(counts) - 1)] if counts else None
        self._looks += 1
        body: dict[str, Any] = {"status": "ok"} | ({} if count is None else {"shards": {"fake": count}})
        _reply(writer, 200, body)

    async def _embed(self, writer: asyncio.StreamWriter, served: Served, usage: dict[str, Any]) -> bool:
        served.fault = self._fault(served)
        if served.fault == "reject":
            _reply(writer, 429, {"error": {"message": "busy"}}, "Retry-After: 1\r\n")
            return True
        async with self._slots:
            await self._pause(perf_counter_ns(), self.behaviour.ttft)
            self.log += [served] if served.name else []
            served.wrote.append(perf_counter_ns())
            _reply(writer, 200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}], "usage": usage}, "X-Fake: 1\r\n")
        return True

    async def _stream(
        self, writer: asyncio.StreamWriter, chat: bool, asked: dict[str, Any], usage: dict[str, Any], served: Served
    ) -> bool:
        options = asked.get("stream_options") or {}
        head = {"id": f"fake-{served.received}", "object": "chat.completion.chunk" if chat else "text_completion",
                "created": 0, "model": "fake"}  # fmt: skip
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX-Fake: 1\r\n\r\n"
        )
        if self.behaviour.role_chunk and chat:
            _event(writer, head | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        tokens = {"short": served.tokens // 2, "empty": 0}.get(served.fault or "", served.tokens)
        due = perf_counter_ns()  # of the next chunk: what one is late does not make the others late
        for size in _sizes(tokens, self.behaviour.first, self.behaviour.coalesce):
            due = await self._pause(due, self.behaviour.itl * size if served.sent_tokens else self.behaviour.ttft)
            served.sent_tokens += size
            if served.fault in ("truncated", "error_event") and served.sent_tokens > tokens // 2:
                if served.fault == "error_event":
                    _event(writer, {"error": {"message": "the engine died", "code": 500}})
                return False
            text = " word" * size
            said = {"delta": {"content": text}} if chat else {"text": text}
            chunk: dict[str, Any] = head | {"choices": [{"index": 0, "finish_reason": None, **said}]}
            if options.get("continuous_usage_stats") and self.behaviour.usage:
                chunk["usage"] = {**usage, "completion_tokens": served.sent_tokens}
            served.wrote.append(perf_counter_ns())
            _event(writer, chunk)
            await writer.drain()
        reason = "stop" if served.fault == "short" else "length"
        _event(writer, head | {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": reason}]})
        if options.get("include_usage") and self.behaviour.usage:
            _event(writer, head | {"choices": [], "usage": {**usage, "completion_tokens": served.sent_tokens}})
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    # ---- behaviour

    async def _pause(self, start: int, seconds: float) -> int:
        """Sleep until so many seconds after `start` (ns), or the end of a stall; returns that time."""
        due = start + int(seconds * 1e9)
        await asyncio.sleep((due - perf_counter_ns()) / 1e9)
        since = (perf_counter_ns() - self._start) / 1e9
        left = self.behaviour.stall_at + self.behaviour.stall_for - since
        if self._start and since >= self.behaviour.stall_at and left > 0:
            await asyncio.sleep(left)
            return perf_counter_ns()
        return due

    def _fault(self, served: Served) -> str | None:
        digits = served.name.rpartition("-")[2]
        if not digits.isdigit():
            return None
        for name in ("reject", "truncated", "error_event", "short", "empty"):
            every = getattr(self.behaviour, f"every_{name}")
            if every and int(digits) % every == every - 1:
                return str(name)
        return None

    def _cached(self, prompt: list[str]) -> int:
        chain, hits, hitting = 0, 0, True
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            chain = hash((chain, *prompt[start : start + BLOCK]))
            hitting = hitting and chain in self._blocks
            hits += BLOCK if hitting else 0
            self._blocks.add(chain)
        return hits


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _prompt(asked: dict[str, Any], overhead: int) -> list[str]:
    """One token a word, and the template's."""
    if "messages" in asked:
        return ["<template>"] * overhead + " ".join(_words(m["content"]) for m in asked["messages"]).split()
    return str(asked.get("input") or asked.get("prompt", "")).split()


def _words(content: Any) -> str:
    if isinstance(content, list):  # parts
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content)


def _sizes(tokens: int, first: int, coalesce: int) -> Iterator[int]:
    """Tokens of each chunk."""
    if tokens:
        yield min(first, tokens)
    for start in range(first, tokens, coalesce):
        yield min(coalesce, tokens - start)


def _event(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(body).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _reply(writer: asyncio.StreamWriter, status: int, body: dict[str, Any], extra: str = "") -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Fake\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)


@contextmanager
def running(behaviour: Behaviour) -> Iterator[FakeServer]:
    """Run a fake server in a thread on a free loopback port, while the block runs."""
    fake = FakeServer(behaviour)
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await fake.start()
        ready.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
