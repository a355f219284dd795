"""Routes that tell of the server and its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from octavo import __version__
from octavo_serve.api.access import Access
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app

Send = Callable[..., httpx.Response]


@pytest.fixture
def send(service: Service, backend: Any) -> Send:
    async def run(method: str, path: str, **sent: Any) -> httpx.Response:
        transport = httpx.ASGITransport(http_app(service, backend, Access()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **sent)

    return lambda method, path, **sent: asyncio.run(run(method, path, **sent))


def test_routes_about_the_server(send: Send, service: Service, client: Any) -> None:
    assert send("GET", "/version").json() == {"version": __version__}
    assert [(send(method, "/ping").status_code, send(method, "/ping").content) for method in ("GET", "POST")] == [
        (200, b"")
    ] * 2
    info = send("GET", "/tokenizer_info", params={"model": "tiny"}).json()
    assert (info["tokenizer_class"], info["eos_token"], info["model_max_length"]) == (
        "PreTrainedTokenizerFast",
        "<|im_end|>",
        256,
    )
    assert info["chat_template"] == client.tokenizer.chat_template
    assert send("GET", "/tokenizer_info", params={"model": "huge"}).status_code == 404
    assert send("GET", "/openapi.json").json()["openapi"].startswith("3.")
    page = send("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    service.models.entries["tiny"].update(shards=0)
    assert send("GET", "/ping").status_code == 503
