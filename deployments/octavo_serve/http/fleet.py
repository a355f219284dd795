"""/fleet/events: the live view as server-sent events, for those who may know what others ask and what is cached."""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo_serve.api.access import Access
from octavo_serve.api.fleet import Fleet, Viewer
from octavo_serve.http.door import CALLER
from octavo_serve.http.replies import STREAM_HEADERS

PATH = "/fleet/events"

WITHHELD = (
    "the live view tells where others' requests run and what is cached: it needs a key with operator: true, or "
    "disclose: true in the config"
)


def add_fleet(app: Starlette, fleet: Fleet, access: Access) -> None:
    """Add the route."""

    async def events(request: Request) -> Response:
        if not access.rules.tells(request.scope.get(CALLER)):
            raise HTTPException(403, WITHHELD)
        return _Events(fleet.join())

    app.add_route(PATH, events, methods=["GET"], include_in_schema=False)


class _Events(Response):
    """What a viewer is told. One that does not read is cut off; one that leaves, Serve cancels."""

    def __init__(self, viewer: Viewer) -> None:
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self.init_headers(STREAM_HEADERS)
        self._viewer = viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send, scope["method"] == "HEAD"))
        self._viewer.on_drop = pump.cancel  # it waits for a socket that nobody reads
        try:
            await asyncio.wait([pump])
        finally:
            self._viewer.leave()
            pump.cancel()
        if not pump.cancelled():
            pump.result()

    async def _pump(self, send: Send, only_headers: bool) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while not only_headers and (chunk := await self._viewer.next()):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
