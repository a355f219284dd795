"""The end of a gateway: no more requests are taken while those that run come to their end."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LEAVING = "this server is about to end and takes no more requests; ask another one, or again in a few seconds"


class Drain:
    """What all of a gateway's HTTP requests pass (ASGI middleware).

    Attributes:
        running: requests whose answer has not been sent to its end.
        begun: whether no more are taken. Each is answered with 503, /health too: a load balancer goes elsewhere then.
    """

    def __init__(self) -> None:
        self.running = 0
        self.begun = False

    def around(self, app: ASGIApp) -> ASGIApp:
        """The same application, counted and closed at the end."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
            elif self.begun and scope["path"] != "/metrics":
                await _refusal()(scope, receive, send)
            else:
                self.running += 1
                try:
                    await app(scope, receive, send)
                finally:
                    self.running -= 1

        return counted


def _refusal() -> JSONResponse:
    error = {"message": LEAVING, "type": "server_error", "param": None, "code": None}
    return JSONResponse({"error": error}, 503, {"Retry-After": "5", "Connection": "close"})
