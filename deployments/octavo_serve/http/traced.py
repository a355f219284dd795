"""Gives requests for text their traces: outside even the door, so that what it refuses is in them too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_serve.api.failures import Failure
from octavo_serve.api.service import Service
from octavo_serve.api.tracing import CURRENT, Trace, Tracer
from octavo_serve.http.door import LONGEST_HOST, path_of

CANCELLED = 499
"""Status of a request whose client left before there was an answer, as web servers log it."""


def tell_failure(failure: Failure) -> None:
    """Tell the trace of the request which runs that it failed."""
    if (trace := CURRENT.get()) is not None:
        trace.fail(failure.code, failure.status)


class Traced:
    """ASGI middleware.

    Args:
        paths: whose POST requests are traced.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (tracer := self._service.tracer) is None or (trace := self._begin(tracer, scope)) is None:
            await self._app(scope, receive, send)
            return

        def noting(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
            return send(message)

        token = CURRENT.set(trace)
        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            trace.fail("cancelled", CANCELLED)
            raise
        except Exception as error:
            trace.fail(type(error).__name__, 500)
            raise
        finally:
            CURRENT.reset(token)
            trace.finish()
            tracer.take(trace)

    def _begin(self, tracer: Tracer, scope: Scope) -> Trace | None:
        if scope["type"] != "http" or scope["method"] != "POST" or (path := path_of(scope)) not in self._paths:
            return None
        trace = tracer.begin(f"POST {path}", scope["headers"])
        if trace is not None:
            trace.attributes |= {
                "http.request.method": "POST",
                "http.route": path,
                "url.path": path,
                "url.scheme": scope.get("scheme", "http"),
                **_server(scope["headers"]),
            }
        return trace


def _server(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str | int]:
    """The server as the client named it."""
    host = next((value for name, value in headers if name == b"host" and len(value) <= LONGEST_HOST), b"")
    name, colon, port = host.decode("latin-1").rpartition(":")
    if colon and port.isdecimal() and int(port) < 2**16:
        return {"server.address": name.strip("[]"), "server.port": int(port)}
    return {"server.address": host.decode("latin-1")} if host else {}
