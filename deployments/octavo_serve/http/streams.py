"""A surface's stream as an HTTP response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo_serve.api.failures import failure_of
from octavo_serve.api.generation import run
from octavo_serve.api.pieces import Element, Ended
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Surface, Writer, to_json
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.api.turns import PIECES
from octavo_serve.api.writing import write
from octavo_serve.http.replies import STREAM_HEADERS, routing_headers
from octavo_serve.http.traced import tell_failure

Event = Mapping[str, Any]


async def event_stream(surface: Surface[Any, Any, Any], writer: Writer[Any, Any], service: Service) -> Response:
    """A response whose first event is there: until then an error is still an HTTP error."""
    chunks = _Chunks(surface, writer, service)
    try:
        first = b""
        while not first:
            first = await chunks.next()
    except BaseException:
        await chunks.elements.aclose()
        raise
    headers = routing_headers(writer.begun.values()) if writer.tells else {}
    return _EventStream(chunks, first, headers)


def failed_stream(surface: Surface[Any, Any, Any], error: Exception, telemetry: Telemetry) -> Response:
    """A stream whose only event is an error."""
    failure = failure_of(error)
    telemetry.failed(failure.status, failure.code)
    tell_failure(failure)
    body = surface.errors.body(failure)
    event = surface.framing.frame(body, to_json(body)) + surface.framing.end
    return Response(event, headers={**STREAM_HEADERS, **failure.headers}, media_type=surface.framing.media_type)


class _Chunks:
    """A stream's bytes: what has come since the last call is one chunk, to a limit.

    Attributes:
        elements: of the job that is written.
        ended: the last chunk was the last of all.
    """

    def __init__(self, surface: Surface[Any, Any, Any], writer: Writer[Any, Any], service: Service) -> None:
        self.surface = surface
        self.elements: AsyncGenerator[list[Element], None] = run(writer.job)
        self.ended = False
        self._writer = writer
        self._service = service
        self._left: list[Element] = []

    async def next(self) -> bytes:
        """More of the stream; may be empty.

        Raises:
            what the job's stream does.
        """
        if self._left:
            await asyncio.sleep(0)
        else:
            self._left = await anext(self.elements)
        now, self._left = self._left, []
        if len(now) > PIECES:
            now, self._left = now[:PIECES], now[PIECES:]
        written = await write(self._writer, now, self._service.threads, self._frame, self._frame_large)
        self.ended = isinstance(now[-1], Ended)
        if self.ended:
            await self._writer.settle()
            written.append(self.surface.framing.end)
        return b"".join(written)

    def failed(self, error: Exception) -> bytes:
        """The last chunk of a stream that has begun and cannot go on."""
        failure = failure_of(error)
        self._service.telemetry.failed(failure.status, failure.code)
        tell_failure(failure)
        self.ended = True
        events = self._writer.failed(failure)
        last = [self.surface.errors.body(failure)] if events is None else events
        return b"".join(map(self._frame, last)) + self.surface.framing.end

    def _frame(self, event: Event) -> bytes:
        return self.surface.framing.frame(event, to_json(event))

    def _frame_large(self, event: Event) -> bytes:
        return self.surface.framing.frame(event, self.surface.large_json(event))


class _EventStream(Response):
    """Chunks as they come; a client that leaves closes the job behind them at once.

    Serve cancels the request of a client that leaves, so nothing here listens for it: Starlette's own task for that
    costs a tenth of a short request. All that has come is one message, the end with it: each costs 25 us of CPU. The
    chunks are read in a task of their own: what wakes up for each would else be every call from uvicorn's down to here.
    """

    def __init__(self, chunks: _Chunks, first: bytes, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.media_type = chunks.surface.framing.media_type
        self.background = None
        self.init_headers({**STREAM_HEADERS, **headers})
        self._chunks = chunks
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._chunks.ended:
            await self._pump(send)
        else:
            await asyncio.create_task(self._pump(send))

    async def _pump(self, send: Send) -> None:
        chunks, chunk = self._chunks, self._first
        async with aclosing(chunks.elements):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": chunk, "more_body": not chunks.ended})
            while not chunks.ended:
                try:
                    chunk = await chunks.next()
                except Exception as error:  # the status line is long gone: the error is an event
                    chunk = chunks.failed(error)
                if chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": not chunks.ended})
