"""Files come in as they are sent, within bounds, and nothing of a client's is a path."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

URL = "http://test/v1/files"
HEAD = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
FORM = "multipart/form-data"
KIND = {"content-type": f"{FORM}; boundary=x"}


async def send(batching: Any, body: Any, headers: dict[str, str] = KIND) -> httpx.Response:
    transport = httpx.ASGITransport(batching.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        return await http.post(URL, content=body, headers=headers)


def left(batching: Any) -> list[str]:
    return sorted(path.name for path in batching.folder.iterdir() if "sqlite" not in path.name)


NAMES = ["../../etc/passwd", "/etc/passwd", "a\\..\\b", "x" * 600, "ü\u0000.jsonl", "batches.sqlite"]


@pytest.mark.parametrize("name", NAMES)
def test_a_files_name_is_only_told(batching: Any, name: str) -> None:
    async def run() -> None:
        async with batching.client() as api:
            file = await api.files.create(file=(name, b"line\n"), purpose="batch")
            assert 0 < len(file.filename) <= 512
            assert not {"/", "\\"} & set(file.filename)
            assert left(batching) == [f"{file.id}.jsonl"]
            assert (await api.files.content(file.id)).content == b"line\n"
            assert (await api.files.retrieve(file.id)).bytes == 5
            assert (await api.files.delete(file.id)).deleted
            assert left(batching) == []
            for call in (api.files.retrieve, api.files.content, api.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(file.id)

    asyncio.run(run())


def test_a_large_file_is_not_held_and_one_that_is_too_large_leaves_nothing(batching: Any) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        yield HEAD + FILE
        while True:
            sent += 2**16
            yield b"x" * 2**16

    response = asyncio.run(send(batching, body()))
    assert response.status_code == 413, response.text
    assert sent <= 2**22 + 2**21, "what was sent after the bound was not read"
    assert left(batching) == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (HEAD + FILE + b"line", "ends too early"),
        (HEAD + b"--x--\r\n", "no file"),
        (FILE + b"a\r\n" + FILE + b"a\r\n--x--\r\n", "more than one file"),
        (FILE + b"a\r\n--x--\r\n", "purpose"),
        (HEAD.replace(b"batch", b"vision") + FILE + b"a\r\n--x--\r\n", "purpose"),
        (HEAD.replace(b"purpose", b"other") + FILE + b"a\r\n--x--\r\n", "other"),
        (HEAD.replace(b"batch", b"b" * 600) + FILE + b"a\r\n--x--\r\n", "512"),
        (HEAD * 20 + FILE + b"a\r\n--x--\r\n", "parts"),
        (b"no form", "cannot be read"),
        (gzip.compress(HEAD + FILE + b"a\r\n--x--\r\n"), "cannot be read"),
        (b"", "too early"),
    ],
)
def test_a_form_that_is_none_is_refused_and_leaves_nothing(batching: Any, body: bytes, says: str) -> None:
    response = asyncio.run(send(batching, body))
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert left(batching) == []


@pytest.mark.parametrize("kind", ["application/json", FORM, f"{FORM}; boundary={'x' * 99}", ""])
def test_a_body_that_is_no_form_is_not_read(batching: Any, kind: str) -> None:
    response = asyncio.run(send(batching, HEAD + FILE + b"a\r\n--x--\r\n", {"content-type": kind}))
    assert (response.status_code, "multipart/form-data" in response.text) == (400, True)


def test_files_expire(batching: Any) -> None:
    now = batching.batches.clock()

    async def run() -> None:
        async with batching.client() as api:
            after: Any = {"anchor": "created_at", "seconds": 3600}
            short = await api.files.create(file=b"a", purpose="batch", expires_after=after)
            long = await api.files.create(file=b"a", purpose="batch")
            assert (short.expires_at - short.created_at, long.expires_at - long.created_at) == (3600, 30 * 86_400)
            with pytest.raises(openai.BadRequestError, match="expires_after"):
                await api.files.create(file=b"a", purpose="batch", expires_after=after | {"seconds": 5})
            batching.batches.clock = lambda: now + 3700
            with pytest.raises(openai.NotFoundError):
                await api.files.retrieve(short.id)
            await batching.batches.tidy()
            assert [one.id async for one in api.files.list()] == [long.id]

    asyncio.run(run())


def test_a_caller_and_all_have_bounds(batching: Any) -> None:
    async def run() -> None:
        async with batching.client() as api:
            for _ in range(2):
                await api.files.create(file=b"x" * (2**22 - 1), purpose="batch")
            with pytest.raises(openai.BadRequestError, match="delete some"):
                await api.files.create(file=b"xxx", purpose="batch")
            assert len(left(batching)) == 2

    asyncio.run(run())


def test_a_file_that_a_batch_reads_is_not_deleted(batching: Any, line: Any) -> None:
    async def run() -> None:
        async with batching.client() as api:
            begun = await batching.begun(api, line("a"))
            with pytest.raises(openai.BadRequestError, match=f"{begun.id} reads it"):
                await api.files.delete(begun.input_file_id)
            async with batching.working():
                await batching.ended(api, begun.id)
            assert (await api.files.delete(begun.input_file_id)).deleted

    asyncio.run(run())


def test_an_upload_that_takes_too_long_ends(batching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_serve.surfaces.batches.files.UPLOAD_SECONDS", 0.05)

    async def body() -> AsyncIterator[bytes]:
        yield HEAD + FILE
        await asyncio.Event().wait()

    response = asyncio.run(send(batching, body()))
    assert (response.status_code, "longer" in response.text) == (400, True)
    assert left(batching) == []
