from __future__ import annotations

import asyncio

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from octavo_serve.gateway.drain import Drain


def test_what_runs_goes_on_and_what_comes_is_refused() -> None:
    async def main() -> None:
        drain, first, end = Drain(), asyncio.Event(), asyncio.Event()

        async def words():
            yield "one "
            first.set()
            await end.wait()
            yield "two"

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            slow = Request(scope).url.path == "/slow"
            await (StreamingResponse(words()) if slow else PlainTextResponse("ok"))(scope, receive, send)

        transport = httpx.ASGITransport(drain.around(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            running = asyncio.create_task(client.get("/slow"))
            await first.wait()
            assert (await client.get("/health")).status_code == 200
            drain.begun = True
            assert drain.running == 1
            for path in ("/slow", "/health"):
                refused = await client.get(path)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert "about to end" in refused.json()["error"]["message"]
            assert (await client.get("/metrics")).text == "ok"
            end.set()
            assert (await running).text == "one two"
            assert drain.running == 0

    asyncio.run(main())
