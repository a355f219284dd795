"""An HTTP/1.1 client that records exactly when each byte arrived.

The time is taken in the event loop's read callback, before any parsing. Raw reads are kept, and parsed after the run
in another place. There are no retries (but see `Client.exchange`) and no redirects. A chunk costs 32 us of CPU. httpx's
raw stream costs 105 us, and 119 us with lines and JSON parsed (eight streams of 1000 chunks, Python 3.11); chunks that
arrive together would be stamped late by that much.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from time import perf_counter_ns
from urllib.parse import urlsplit

import httptools

from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.sse import Read


class Broken(Exception):
    """The connection ended, or its data is not HTTP."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is."""

    host: str
    port: int
    tls: bool
    prefix: str  # of every path, without a slash at its end

    @property
    def authority(self) -> str:
        """Host and port as a URL and the `Host` header say them: an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


def address(url: str) -> Address:
    """Read a base URL, with or without the /v1 at its end.

    Raises:
        LoadTestError: it is no http(s) URL.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
        known = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:  # a port that is no number, or half of an IPv6 address
        known = None
    if not known:
        raise LoadTestError(f"{url!r} is no server's address; it should look like http://127.0.0.1:8000")
    tls = parts.scheme == "https"
    return Address(known, port or (443 if tls else 80), tls, parts.path.rstrip("/").removesuffix("/v1"))


@dataclass(slots=True)
class Answer:
    """A response with the times of its reads."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    first_byte: int | None = None  # ns
    end: int = 0  # ns
    reads: list[Read] = field(default_factory=list)  # of the body

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.reads)


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer = Answer()
        self._done: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._now = 0

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Send a request; `answer` fills up while the response comes.

        Raises:
            Broken: the connection ended before the response did.
        """
        assert self.transport is not None
        self.answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._done

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter_ns()
        if self._done is None or self._done.done() or self._parser is None:
            self.abort()  # data without a request
            return
        if self.answer.first_byte is None:
            self.answer.first_byte = self._now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(Broken(f"not HTTP: {error}"))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._now = perf_counter_ns()
        if exc is None and self._until_close():
            self._finish(None)
        self._finish(Broken(f"connection lost: {exc}" if exc else "connection closed before the answer's end"))

    def _until_close(self) -> bool:
        """Whether an answer has begun whose body ends where the connection does, as HTTP/1.0 has it."""
        return bool(self.answer.status) and not {"content-length", "transfer-encoding"} & set(self.answer.headers)

    # ---- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answer.reads.append((self._now, body))

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if not self._parser.should_keep_alive() and self.transport is not None:
            self.transport.close()
        self._finish(None)

    def _finish(self, error: Broken | None) -> None:
        if self._done is not None and not self._done.done():
            self.answer.end = self._now
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


class Client:
    """A pool of connections to one server: idle ones are reused, and there can be one per request."""

    def __init__(self, server: Address, headers: dict[str, str], reuse: bool = True) -> None:
        self.server = server
        self._reuse = reuse
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if server.tls else None
        listed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"Host: {server.authority}\r\nAccept: */*\r\n{listed}"

    def request(self, method: str, path: str, body: bytes = b"", extra: str = "") -> bytes:
        """A whole request as bytes."""
        head = f"{method} {self.server.prefix}{path} HTTP/1.1\r\n{self._head}{extra}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode("latin-1") + b"\r\n" + body

    async def connection(self) -> tuple[Connection, bool]:
        """An open connection, and whether it is a new one.

        Raises:
            OSError: the server cannot be reached.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection, False
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.server.host, self.server.port, ssl=self._tls)
        return connection, True

    async def exchange(self, request: bytes, answer: Answer) -> tuple[Connection, int | None]:
        """Send a request over an open connection or a new one; returns it, and when a new one was there (ns).

        A server may close a connection without saying so; llama.cpp's does after each stream. One that is used again in
        that moment ends without a byte: the server never read the request, which then goes out once more over a new
        one. That time is counted, and nothing else is ever sent twice.

        Raises:
            OSError: the server cannot be reached.
            Broken: the connection ended before the answer did.
        """
        connection, new = await self.connection()
        connected = perf_counter_ns() if new else None
        try:
            await connection.exchange(request, answer)
        except Broken:
            if new or answer.first_byte is not None:
                raise
            answer.end = 0
            self._idle.clear()  # of the same age
            return await self.exchange(request, answer)
        except BaseException:
            connection.abort()
            raise
        return connection, connected

    def release(self, connection: Connection) -> None:
        if self._reuse and connection.usable:
            self._idle.append(connection)
        elif connection.transport is not None:
            connection.transport.close()

    async def fetch(self, method: str, path: str, body: bytes = b"", timeout: float = 60.0) -> Answer:
        """One request outside any measurement.

        Raises:
            LoadTestError: no answer.
        """
        answer = Answer()
        try:
            async with asyncio.timeout(timeout):
                connection, _ = await self.exchange(self.request(method, path, body), answer)
        except (OSError, Broken) as error:
            what = "no answer in time" if isinstance(error, TimeoutError) else error
            raise LoadTestError(f"{self.server.url}{path}: {what}") from None
        self.release(connection)
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
