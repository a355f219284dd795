"""The HTTP client: addresses, how an answer may end, and which connections are used again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from octavo_loadtest.client import Answer, Broken, Client, address
from octavo_loadtest.errors import LoadTestError


@pytest.mark.parametrize(
    ("url", "host", "authority", "again"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000/v1", "localhost", "localhost:8000", "http://localhost:8000"),
        ("http://[::1]:8000/v1", "::1", "[::1]:8000", "http://[::1]:8000"),
        ("https://llm.example/a/v1/", "llm.example", "llm.example:443", "https://llm.example:443/a"),
    ],
)
def test_a_server_is_called_what_its_url_says(url: str, host: str, authority: str, again: str) -> None:
    server = address(url)
    assert (server.host, server.authority, server.url) == (host, authority, again)
    head = Client(server, {}).request("GET", "/health").split(b"\r\n")
    assert f"Host: {authority}".encode() in head


@pytest.mark.parametrize("url", ["ftp://x", "http://", "file:///etc/passwd"])
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(LoadTestError, match="no server's address"):
        address(url)


def test_a_request_as_bytes() -> None:
    made = Client(address("http://a:1/b"), {"Authorization": "Bearer k"}).request("POST", "/v1/x", b"{}", "X-R: 1\r\n")
    head, _, body = made.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /b/v1/x HTTP/1.1", b"Host: a:1", b"Accept: */*", b"Authorization: Bearer k", b"X-R: 1",
        b"Content-Type: application/json", b"Content-Length: 2",
    ]  # fmt: skip
    assert body == b"{}"


# ---- answers, byte by byte ----------------------------------------------------------------------------------------


LEAVE = b"leave"  # in place of a piece: the connection ends there


@asynccontextmanager
async def scripted(answers: list[list[bytes]], stay: bool = True) -> Any:
    """A server that writes the pieces of one answer for each request it reads, whatever it asks; and then leaves,
    unless it is to `stay`."""
    opened: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        try:
            while answers:
                await reader.readuntil(b"\r\n\r\n")
                for piece in answers.pop(0):
                    if piece == LEAVE:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                if not stay:
                    return
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        client = Client(address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), {})
        try:
            yield client, opened
        finally:
            client.close()


def fetched(pieces: list[bytes], stay: bool = True) -> Answer:
    async def run() -> Answer:
        async with scripted([pieces], stay) as (client, _):
            found: Answer = await client.fetch("GET", "/", timeout=5)
            return found

    return asyncio.run(run())


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKS = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"1\r\n!\r\n"]


@pytest.mark.parametrize(
    "pieces",
    [
        [*CHUNKS, b"0\r\n\r\n"],
        [*CHUNKS, b"0\r\n", b"\r\n"],  # in two writes
        [b"".join([*CHUNKS, b"0\r\nX-Trailer: 1\r\n\r\n"])],
        [HEAD + b"Content-Length: 6\r\n\r\nhello", b"!"],
        [HEAD + b"Connection: close\r\nContent-Length: 6\r\n\r\n", b"hello!"],
        [HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", b"6\r\nhello!\r\n0\r\n\r\n"],
    ],
)
def test_answers_that_say_where_they_end(pieces: list[bytes]) -> None:
    answer = fetched(pieces)
    assert (answer.status, answer.body) == (200, b"hello!")
    assert answer.first_byte is not None
    assert answer.first_byte <= answer.reads[0][0] <= answer.end


@pytest.mark.parametrize("head", [HEAD, b"HTTP/1.0 200 OK\r\n", HEAD + b"Connection: close\r\n"])
def test_an_answer_that_ends_with_its_connection(head: bytes) -> None:
    assert fetched([head + b"\r\nhel", b"lo!"], stay=False).body == b"hello!"


@pytest.mark.parametrize(
    "pieces",
    [
        CHUNKS,  # the last chunk is missing
        [*CHUNKS, b"0\r\n"],
        [HEAD + b"Content-Length: 9\r\n\r\nhello!"],
        [HEAD],  # not even the headers
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [],
    ],
)
def test_answers_that_break_off(pieces: list[bytes]) -> None:
    with pytest.raises(LoadTestError):
        fetched(pieces, stay=False)


def test_no_answer_in_time() -> None:
    async def run() -> None:
        async with scripted([CHUNKS]) as (client, _):  # its end never comes
            await client.fetch("GET", "/", timeout=0.05)

    with pytest.raises(LoadTestError, match="no answer in time"):
        asyncio.run(run())


# ---- connections --------------------------------------------------------------------------------------------------

OK = [HEAD + b"Content-Length: 2\r\n\r\nok"]
CLOSED = [HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"]


def opened_by(answers: list[list[bytes]], act: Callable[[Client], Awaitable[Any]]) -> int:
    async def run() -> int:
        async with scripted(answers) as (client, opened):
            await act(client)
            return len(opened)

    return asyncio.run(run())


async def twice(client: Client) -> None:
    for _ in range(2):
        assert (await client.fetch("GET", "/", timeout=5)).body == b"ok"


def test_an_open_connection_is_used_again() -> None:
    assert opened_by([OK, OK], twice) == 1


def test_a_connection_that_the_server_ends_is_not() -> None:
    assert opened_by([CLOSED, OK], twice) == 2


def test_a_connection_that_was_closed_unannounced_costs_a_new_one() -> None:
    """As llama.cpp's server does after each stream: the request that met it was never read."""
    assert opened_by([OK, [LEAVE], OK], twice) == 2


@pytest.mark.parametrize("answers", [[[LEAVE], OK], [OK, [HEAD, LEAVE], OK], [OK, [LEAVE], [LEAVE], OK]])
def test_nothing_else_is_sent_twice(answers: list[list[bytes]]) -> None:
    """Over a new connection, after the first byte of an answer, or a third time."""
    with pytest.raises(LoadTestError, match="connection closed"):
        opened_by(answers, twice)


def test_a_connection_for_each_request_where_that_is_asked() -> None:
    async def act(client: Client) -> None:
        apart = Client(client.server, {}, reuse=False)
        await twice(apart)

    assert opened_by([OK, OK], act) == 2


def test_data_that_nobody_asked_for_ends_a_connection() -> None:
    async def act(client: Client) -> None:
        await client.fetch("GET", "/", timeout=5)
        await asyncio.sleep(0.05)
        connection, new = await client.connection()
        assert new
        connection.abort()

    assert opened_by([[*OK, b"HTTP/1.1 200 OK\r\n"]], act) == 2


def test_an_exchange_that_is_given_up_raises_broken() -> None:
    async def act(client: Client) -> None:
        connection, _ = await client.connection()
        waiting = asyncio.create_task(connection.exchange(client.request("GET", "/"), Answer()))
        await asyncio.sleep(0.02)
        connection.abort()
        with pytest.raises(Broken):
            await waiting
        assert not connection.usable

    assert opened_by([[]], act) == 1
