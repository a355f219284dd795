"""An application without sockets that works on batches, and OpenAI's own client for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from octavo_serve.api.access import Access, Caller
from octavo_serve.api.batches.nouns import StoreSettings
from octavo_serve.api.batches.runner import Ask, Runner
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.http.app import http_app
from octavo_serve.http.inside import ask
from octavo_serve.surfaces.served import BATCHED

ENDED = "completed", "failed", "expired", "cancelled"


class Batching:
    """One gateway's."""

    def __init__(self, service: Service, backend: Any, folder: Path) -> None:
        self.access, self.folder, self.backend = Access(), folder, backend
        self.service, self.batches = service, service.batches
        self.batches.paths = BATCHED
        self.batches.settings = StoreSettings(folder, 2**22, 2**23, 2**24, lines_per_second=1000)
        self.app = http_app(service, backend, self.access)
        self.room = 4

    def beside(self) -> Batching:
        """Another gateway over the same folder."""
        return Batching(Service(self.service.models, self.service.limits, Telemetry()), self.backend, self.folder)

    @contextlib.asynccontextmanager
    async def client(self, key: str = "none", **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        http = httpx.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key=key, http_client=http, max_retries=0, **options
        ) as client:
            yield client

    async def ask(self, owner: str, path: str, body: bytes) -> Any:
        return await ask(self.app.inside, Caller(owner), path, body)

    @contextlib.asynccontextmanager
    async def working(self, asking: Ask | None = None) -> AsyncIterator[None]:
        runner = Runner(self.batches, asking or self.ask, lambda model: self.room, lambda: 2**20)
        task = asyncio.create_task(runner.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def begun(
        self, client: openai.AsyncOpenAI, *lines: Any, url: str = "/v1/chat/completions", **more: Any
    ) -> Batch:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        file = await client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id,
            endpoint=url,
            completion_window="24h",
            **more,  # type: ignore[arg-type]
        )

    async def ended(self, client: openai.AsyncOpenAI, batch_id: str) -> Batch:
        async with asyncio.timeout(20):
            while (batch := await client.batches.retrieve(batch_id)).status not in ENDED:
                await asyncio.sleep(0.02)
        return batch

    async def lines_of(self, client: openai.AsyncOpenAI, file_id: str | None) -> list[Any]:
        if file_id is None:
            return []
        return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]


@pytest.fixture
def batching(service: Service, backend: Any, tmp_path: Path) -> Batching:
    return Batching(service, backend, tmp_path / "batches")


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    def made(name: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
        asked = {"model": "tiny", "messages": [{"role": "user", "content": name}]} | body
        return {"custom_id": name, "method": "POST", "url": url, "body": asked}

    return made
