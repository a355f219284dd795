"""Responses that run without their client: they go on, are followed, cancelled, fail with their gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from octavo.errors import OctavoError
from octavo_serve.api.records import RecordSettings
from octavo_serve.surfaces.responses import background

BODY = {"input": "Hello", "background": True}


class Held:
    """Holds the scripted client's steps until they are let go."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        generate = client.generate

        async def held(request: Any) -> AsyncGenerator[Any, None]:
            first = True
            async for updates in generate(request):
                if not first:
                    await self.go.wait()
                first = False
                yield updates

        monkeypatch.setattr(client, "generate", held)


async def status(api: Any, response_id: str, key: str = "") -> str:
    answer = await api.request("GET", f"/v1/responses/{response_id}", key)
    return str(api.checked(answer.json())["status"])


async def until(api: Any, response_id: str, wanted: str) -> None:
    async with asyncio.timeout(20):
        while await status(api, response_id) != wanted:
            await asyncio.sleep(0.005)


def test_it_goes_on_without_its_client(api: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def perform() -> None:
        held = Held(client, monkeypatch)
        first = api.checked((await api.request("POST", "/v1/responses", json=BODY)).json())
        assert (first["status"], first["background"], first["output"]) == ("queued", True, [])
        await until(api, first["id"], "in_progress")
        refused = await api.request("POST", "/v1/responses", json={"input": "x", "previous_response_id": first["id"]})
        assert "only one that has ended" in refused.json()["error"]["message"]
        held.go.set()
        await until(api, first["id"], "completed")
        answer = (await api.request("GET", f"/v1/responses/{first['id']}")).json()
        assert answer["output"][0]["content"][0]["text"] == "Paris."

    asyncio.run(perform())


def test_it_is_cancelled(api: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def perform() -> None:
        Held(client, monkeypatch)
        first = (await api.request("POST", "/v1/responses", json=BODY)).json()
        await until(api, first["id"], "in_progress")
        for _ in range(2):
            cancelled = await api.request("POST", f"/v1/responses/{first['id']}/cancel")
            assert api.checked(cancelled.json())["status"] == "cancelled"
        assert await status(api, first["id"]) == "cancelled"
        assert len(client.closed) == 1

    asyncio.run(perform())


def test_it_is_cancelled_or_deleted_at_another_gateway(
    api: Any, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(background, "BEAT_SECONDS", 0.01)
    api.service.records.settings = RecordSettings(tmp_path / "records.sqlite")
    other = api.other()

    async def perform() -> None:
        Held(client, monkeypatch)
        for method, path in (("POST", "/cancel"), ("DELETE", "")):
            first = (await api.request("POST", "/v1/responses", json=BODY)).json()
            await until(api, first["id"], "in_progress")
            await until(other, first["id"], "in_progress")
            assert (await other.request(method, f"/v1/responses/{first['id']}{path}")).status_code == 200
            async with asyncio.timeout(20):
                while api.service.detached.find("", first["id"]) is not None:
                    await asyncio.sleep(0.005)
        assert len(client.closed) == 2

    asyncio.run(perform())


def test_what_another_gateway_cancelled_is_cancelled_at_once(
    api: Any, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    api.service.records.settings = RecordSettings(tmp_path / "records.sqlite")
    other = api.other()

    async def perform() -> None:
        Held(client, monkeypatch)
        first = (await api.request("POST", "/v1/responses", json=BODY)).json()
        await until(other, first["id"], "in_progress")
        assert (await other.request("POST", f"/v1/responses/{first['id']}/cancel")).json()["status"] == "cancelled"
        assert await status(api, first["id"]) == "cancelled"
        assert len(client.closed) == 1

    asyncio.run(perform())


def test_it_fails_with_its_gateway(api: Any, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    api.service.records.settings = RecordSettings(tmp_path / "records.sqlite")
    other = api.other()

    async def perform() -> None:
        Held(client, monkeypatch)
        first = (await api.request("POST", "/v1/responses", json=BODY)).json()
        now = other.service.records.clock()
        other.service.records.clock = lambda: now + 2 * background.DEAD_SECONDS
        answer = api.checked((await other.request("GET", f"/v1/responses/{first['id']}")).json())
        assert (answer["status"], answer["error"]["code"]) == ("failed", "server_error")
        await api.service.detached.cancel(api.service.detached.find("", first["id"]))

    asyncio.run(perform())


def test_an_error_is_its_end(api: Any, client: Any) -> None:
    client.late_error, client.fail_after = OctavoError("the token was not a number"), 1

    async def perform() -> None:
        first = (await api.request("POST", "/v1/responses", json=BODY)).json()
        await until(api, first["id"], "failed")
        answer = (await api.request("GET", f"/v1/responses/{first['id']}")).json()
        assert answer["error"]["message"] == "the token was not a number"

    asyncio.run(perform())


def test_its_stream_is_read_again(api: Any) -> None:
    async def perform() -> None:
        sent = await api.request("POST", "/v1/responses", json=BODY | {"stream": True})
        events = api.events_of(sent.text)
        path = f"/v1/responses/{events[0]['response']['id']}"
        assert events[-1]["type"] == "response.completed"
        again = await api.request("GET", path, params={"stream": "true"})
        assert api.events_of(again.text) == events
        rest = await api.request("GET", path, params={"stream": "true", "starting_after": "2"})
        assert api.events_of(rest.text, first=3) == events[3:]

    asyncio.run(perform())


def test_a_client_that_leaves_a_stream_ends_nothing(api: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def perform() -> None:
        held = Held(client, monkeypatch)
        asking = asyncio.create_task(api.request("POST", "/v1/responses", json=BODY | {"stream": True}))
        async with asyncio.timeout(20):
            while not client.opened:
                await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait([asking])
        (response_id,) = api.service.detached._runs
        held.go.set()
        await until(api, response_id, "completed")

    asyncio.run(perform())
