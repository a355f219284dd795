"""A server with OpenAI's API, as the commands `chat`, `models` and `status` ask it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from octavo.errors import OctavoError
from octavo_serve.command.plain_text import clean
from octavo_serve.ports import is_loopback

HERE = "http://127.0.0.1:8000"
"""Where `octavo serve` listens if nobody says otherwise."""
LARGEST = 2**24
"""Bytes of an answer, or of an event, that is read as a whole: /metrics of a thousand shards has a tenth of it."""
_SECONDS = httpx.Timeout(600, connect=10)  # until the first token and between two of them


class RemoteError(OctavoError):
    """A server cannot be asked, or refuses; the message says why and what to do."""


class Remote:
    """One server.

    Args:
        url: with or without /v1; "" is `HERE`.
        key: of the API. By default $OCTAVO_API_KEY or, for a server that was named, $OPENAI_API_KEY.

    Attributes:
        url: without /v1.
    """

    def __init__(self, url: str = "", key: str | None = None) -> None:
        self.url = (url or HERE).rstrip("/").removesuffix("/v1").rstrip("/")
        key = key or os.environ.get("OCTAVO_API_KEY") or (os.environ.get("OPENAI_API_KEY") if url else None)
        headers = {b"Authorization": _bearer(key)} if key else {}
        try:
            near = is_loopback(httpx.URL(self.url).host)
            self._client = httpx.Client(headers=headers, timeout=_SECONDS, trust_env=not near)  # no proxy to ourselves
        except (httpx.InvalidURL, ValueError) as error:
            raise RemoteError(f"{self.url!r} is no URL: {error}") from None

    def close(self) -> None:
        self._client.close()

    def json(self, path: str, *, failing: bool = False) -> Any:
        """What a path answers.

        Args:
            failing: whether an answer of 503 counts, as /health gives one where no model is ready.

        Raises:
            RemoteError: nothing or something else answers there.
        """
        try:
            return json.loads(self.text(path, failing=failing))
        except (ValueError, RecursionError):
            raise RemoteError(
                f"{self.url}{path} does not answer with JSON: is it an OpenAI-compatible server?"
            ) from None

    def text(self, path: str, *, failing: bool = False) -> str:
        """The same, of any type."""
        with self._asked("GET", path, {}, failing) as answer:
            return _body(answer).decode(errors="replace")

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What a path answers to JSON."""
        with self._asked("POST", path, {"json": body}, failing=False) as answer:
            return json.loads(_body(answer))

    def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> Any:
        """What a path answers to a form with a file, which is read as it is sent."""
        with file.open("rb") as opened:
            sent = {"files": {"file": (file.name, opened)}, "data": fields}
            with self._asked("POST", path, sent, failing=False) as answer:
                return json.loads(_body(answer))

    def download(self, path: str, file: Path) -> None:
        """Write what a path answers to a file, which is there once it is whole."""
        part = file.with_name(f"{file.name}.part")
        with self._asked("GET", path, {}, failing=False) as answer, part.open("wb") as opened:
            for chunk in answer.iter_bytes():
                opened.write(chunk)
        part.replace(file)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """Post, and yield what each server-sent event holds. Closing the iterator ends the request.

        Raises:
            RemoteError: as above, also in the middle of a stream.
        """
        with self._asked("POST", path, {"json": body}, failing=False) as answer:
            for line in _lines(answer):
                name, _, data = line.partition(":")
                if name == "data" and data.strip() == "[DONE]":
                    return
                if name == "data":
                    yield _event(data)

    @contextmanager
    def _asked(self, method: str, path: str, sent: Mapping[str, Any], failing: bool) -> Iterator[httpx.Response]:
        try:
            with self._client.stream(method, self.url + path, **sent) as answer:
                if answer.status_code != 200 and not (failing and answer.status_code == 503):
                    raise RemoteError(_refusal(answer))
                yield answer
        except httpx.ConnectError as error:
            raise RemoteError(
                f"nothing answers at {self.url} ({error}): start a server with `octavo serve`, or name its URL"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteError(f"{self.url}: {str(error) or type(error).__name__}") from None


def _bearer(key: str) -> bytes:
    """A header. Only what cannot be one is refused here: the client's own complaint would show the key."""
    key = key.strip()  # of an environment file whose lines end as on Windows
    if clean(key) != key or "\n" in key:
        raise RemoteError("the API key holds a control character: it was not copied as it is")
    return f"Bearer {key}".encode("utf-8", "surrogateescape")


def _body(answer: httpx.Response) -> bytes:
    found = bytearray()
    for chunk in answer.iter_bytes():
        found += chunk
        if len(found) > LARGEST:
            raise RemoteError(f"{answer.url} answers with more than {LARGEST} bytes")
    return bytes(found)


def _lines(answer: httpx.Response) -> Iterator[str]:
    rest = b""
    for chunk in answer.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if len(rest) > LARGEST:
            raise RemoteError(f"{answer.url} streams a line of more than {LARGEST} bytes")


def _event(data: str) -> Any:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise RemoteError(f"the server's stream holds no JSON: {clean(data[:80])!r}") from None
    if isinstance(found, dict) and "error" in found:
        raise RemoteError(_message(found) or "the server ended the stream with an error")
    return found


def _refusal(answer: httpx.Response) -> str:
    """Why a request was refused, in the server's words where it has any."""
    try:
        said = _message(json.loads(_body(answer)))
    except (ValueError, RecursionError):
        said = ""
    if answer.status_code in (401, 403):
        said = f"{said or 'it needs an API key'} (--api-key, or OCTAVO_API_KEY in the environment)"
    return said or f"{answer.url} answers {answer.status_code}"


def _message(found: Any) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return clean(said)[:2000] if isinstance(said, str) else ""
