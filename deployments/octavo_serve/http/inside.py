"""Requests that come from inside: a line of a batch goes the way of any request from behind the door on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.types import ASGIApp, Message

from octavo_serve.api.access import Caller
from octavo_serve.api.batches.runner import Reply
from octavo_serve.api.usage import COUNTED, Usage
from octavo_serve.http.door import BELOW, CALLER
from octavo_serve.http.replies import JSON


async def ask(app: ASGIApp, caller: Caller, path: str, body: bytes, *, below: bool = True) -> Reply:
    """What an application answers to a POST of JSON.

    Args:
        below: it is below all other requests.
    """
    messages: list[Message] = []
    unread = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        return unread.pop() if unread else await asyncio.get_running_loop().create_future()  # nobody leaves

    async def send(message: Message) -> None:
        messages.append(message)

    counted = COUNTED.set(used := Usage())
    with contextlib.suppress(Exception):  # it was answered and logged, and is raised for who runs a server
        scope = _scope(caller, path, len(body))
        await app(scope | {BELOW: True} if below else scope, receive, send)
    COUNTED.reset(counted)
    if not messages or messages[-1].get("more_body"):
        return Reply(500, b'{"error":{"message":"internal server error; the server\'s log says more"}}')
    headers = dict(messages[0]["headers"])
    again = headers.get(b"retry-after-ms")
    return Reply(
        messages[0]["status"],
        b"".join(message.get("body", b"") for message in messages[1:]),
        headers.get(b"content-type", b"").startswith(JSON.encode()),
        None if again is None else int(again) / 1000,
        used,
    )


def _scope(caller: Caller, path: str, size: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", JSON.encode()), (b"content-length", str(size).encode())],
        "client": None,
        "server": None,
        CALLER: caller,
    }
