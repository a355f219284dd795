"""Gives requests for text their traces: outside even the door, so that what it refuses is in them too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_serve.api.failures import Failure
from octavo_serve.api.service import Service
from octavo_serve.api.tracing import CURRENT, Trace, Tracer
from octavo_serve.http.door import LONGEST_HOST, path_of

LONGEST_ID = 128
"""Characters of a request's id."""
LONGEST_PATH = 1024
"""Characters of a path; a model's name in it has half as many."""
CANCELLED = 499
"""Status of a request whose client left before there was an answer, as web servers log it."""


def tell_failure(failure: Failure) -> None:
    """Tell the trace of the request which runs that it failed."""
    if (trace := CURRENT.get()) is not None:
        trace.fail(failure.code, failure.status)


class Traced:
    """ASGI middleware.

    Args:
        paths: whose POST requests are traced, as routes have them: "/models/{model:path}".
    """

    def __init__(self, app: ASGIApp, service: Service, paths: Iterable[str]) -> None:
        self._app = app
        self._service = service
        self._plain = frozenset(path for path in paths if "{" not in path)
        self._patterns = [compile_path(path)[:2] for path in paths if "{" in path]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if (tracer := self._service.tracer) is None or (trace := self._begin(tracer, scope)) is None:
            return self._app(scope, receive, send)
        return self._run(tracer, trace, scope, receive, send)

    async def _run(self, tracer: Tracer, trace: Trace, scope: Scope, receive: Receive, send: Send) -> None:
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
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path = path_of(scope)
        if (route := self._route(path)) is None:
            return None
        trace = tracer.begin(f"POST {route}", scope["headers"])
        if trace is not None:
            trace.attributes |= {
                "http.request.method": "POST",
                "http.route": route,
                "url.path": path[:LONGEST_PATH],
                "url.scheme": scope.get("scheme", "http"),
                **_named(scope["headers"]),
            }
        return trace

    def _route(self, path: str) -> str | None:
        """The route that a path takes, without the values of its parameters; None: it is not traced."""
        if path in self._plain:
            return path
        return next((route for pattern, route in self._patterns if pattern.match(path)), None)


def _named(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str | int]:
    """The request's id, as in logs, and the server as the client named it."""
    found: dict[str, str | int] = {}
    for name, value in headers:
        if name == b"x-request-id":
            found["octavo.request_id"] = value[:LONGEST_ID].decode("latin-1")
        elif name == b"host":
            host, colon, port = value[:LONGEST_HOST].decode("latin-1").rpartition(":")
            if colon and port.isdecimal() and int(port) < 2**16:
                found |= {"server.address": host.strip("[]"), "server.port": int(port)}
            else:
                found["server.address"] = value[:LONGEST_HOST].decode("latin-1")
    return found
