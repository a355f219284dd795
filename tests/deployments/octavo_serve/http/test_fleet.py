"""The live view's route: who may see it, how many, and how a stream begins and ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import pytest

from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.fleet import MAX_UNREAD, MAX_VIEWERS, Fleet, State, Told
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app
from octavo_serve.http.fleet import PATH

KEYS = Keys([
    KnownKey(Caller("alice"), sha256(b"alice").digest()),
    KnownKey(Caller("ops", operator=True), sha256(b"ops").digest()),
])  # fmt: skip


class Still:
    """A fleet in which nothing happens."""

    async def look(self) -> State:
        return {"at": 1, "models": {}}

    def listen(self, told: Told | None) -> None:
        pass


class Client:
    """One client of the route, whose connection takes `room` messages before it is full."""

    def __init__(self, app: Any, room: int = 1000, key: str = "", method: str = "GET") -> None:
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        scope = {"type": "http", "method": method, "path": PATH, "headers": headers, "query_string": b""}
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue(room)
        self.task = asyncio.create_task(app(scope, self._receive, self.sent.put))

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def status(self) -> int:
        status: int = (await self.sent.get())["status"]
        return status

    async def body(self) -> bytes:
        body: bytes = (await self.sent.get())["body"]
        return body


def run(service: Service, backend: Any, scenario: Callable[[Any, Fleet], Awaitable[None]], rules: Rules) -> None:
    async def main() -> None:
        fleet = Fleet(Still(), period=0.001)
        await scenario(http_app(service, backend, Access(rules), fleet=fleet), fleet)
        fleet.end("the test is over", over=True)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rules", "key", "status"),
    [
        (Rules(), "", 200),
        (Rules(disclose=False), "", 403),
        (Rules(KEYS, disclose=False), "", 401),
        (Rules(KEYS, disclose=False), "alice", 403),
        (Rules(KEYS, disclose=False), "ops", 200),
        (Rules(KEYS, disclose=True), "alice", 200),
        (Rules(KEYS, disclose=True), "mallory", 401),
    ],
)
def test_who_may_see_it(service: Service, backend: Any, rules: Rules, key: str, status: int) -> None:
    async def scenario(app: Any, fleet: Fleet) -> None:
        client = Client(app, key=key)
        assert await client.status() == status
        body = await client.body()
        if status == 200:
            assert body.startswith(b'event: state\ndata: {"type":"state"')
        else:
            assert json.loads(body)["error"]["message"]
        if status == 403:
            assert b"operator: true" in body

    run(service, backend, scenario, rules)


def test_one_too_many_is_told_to_come_later(service: Service, backend: Any) -> None:
    async def scenario(app: Any, fleet: Fleet) -> None:
        clients = [Client(app) for _ in range(MAX_VIEWERS)]
        assert {await client.status() for client in clients} == {200}
        late = Client(app)
        started = await late.sent.get()
        assert started["status"] == 429
        assert b"retry-after" in dict(started["headers"])
        clients[0].task.cancel()  # what Serve does when a client leaves
        await asyncio.wait([clients[0].task])
        assert await Client(app).status() == 200

    run(service, backend, scenario, Rules())


def test_a_client_that_does_not_read_is_cut_off(service: Service, backend: Any) -> None:
    async def scenario(app: Any, fleet: Fleet) -> None:
        slow, reader = Client(app, room=2), Client(app)
        await asyncio.wait_for(slow.task, 10)
        assert slow.sent.qsize() == 2
        assert await reader.status() == 200
        heard = b"".join([await reader.body() for _ in range(MAX_UNREAD)])
        assert heard.count(b"event: change") >= MAX_UNREAD - 1
        assert not reader.task.done()

    run(service, backend, scenario, Rules())


def test_a_stream_ends_in_words_when_the_gateway_does(service: Service, backend: Any) -> None:
    async def scenario(app: Any, fleet: Fleet) -> None:
        client = Client(app)
        assert await client.status() == 200
        assert await client.body()
        fleet.end("this server is about to end", over=True)
        await client.task
        bodies = [client.sent.get_nowait() for _ in range(client.sent.qsize())]
        assert b"this server is about to end" in bodies[-2]["body"]
        assert bodies[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert await Client(app).status() == 503

    run(service, backend, scenario, Rules())


def test_head_tells_who_may_and_ends(service: Service, backend: Any) -> None:
    async def scenario(app: Any, fleet: Fleet) -> None:
        client = Client(app, method="HEAD")
        await client.task
        assert await client.status() == 200
        assert await client.body() == b""

    run(service, backend, scenario, Rules())


def test_there_is_no_route_where_nobody_can_watch(service: Service, backend: Any) -> None:
    async def main() -> None:
        assert await Client(http_app(service, backend)).status() == 404

    asyncio.run(main())
