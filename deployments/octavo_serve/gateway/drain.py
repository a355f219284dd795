"""The end of a gateway: new requests are refused while running ones finish."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LEAVING = "this server is about to end and takes no more requests; ask another one, or again in a few seconds"


class Drain:
    """ASGI middleware around all of a gateway's HTTP requests.

    Attributes:
        running: requests whose answer has not been sent completely.
        begun: whether new requests are refused: with 503, /health too, so that a load balancer uses another gateway.
    """

    def __init__(self) -> None:
        self.running = 0
        self.begun = False

    def around(self, app: ASGIApp) -> ASGIApp:
        """The same application, with its requests counted, and refused once draining has begun."""

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
