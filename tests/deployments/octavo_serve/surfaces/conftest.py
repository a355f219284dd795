"""A real engine in this process, and requests by HTTP without sockets, for any protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.request import Placement, Request, SequenceUpdate
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.api.access import Access
from octavo_serve.api.bounds import Limits
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.http.app import http_app
from octavo_serve.wire.messages import ModelInfo

BLOCK = 8


class InProcess:
    """A `ModelClient` of one engine."""

    def __init__(self, folder: Path) -> None:
        config = EngineConfig(dtype="float32", kv_cache_bytes=2**22, block_size=BLOCK, threads=1)
        self.engine = AsyncEngine.load(str(folder), config)
        self.opened: list[Request] = []
        tokenizer = load_tokenizer(resolve_source(str(folder)))
        entry = ModelEntry("tiny", 1, self, tokenizer=tokenizer, info=asyncio.run(self.describe()), shards=1)
        self.service = Service(Registry([entry]), Limits(), Telemetry())

    async def describe(self) -> ModelInfo:
        limits = self.engine.engine.limits
        return ModelInfo("tiny", 512, vocab_size=259, block_size=BLOCK, tasks=limits.tasks, pooling=limits.pooling)

    @contextmanager
    def admitted(self, key: Callable[[], bytes], sequences: int, tokens: int, claim: object = None) -> Iterator[None]:
        yield

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        self.opened.append(request)
        return self.engine.generate(request)

    def placement(self, request_id: str) -> Placement | None:
        return None

    async def abort(self, request_id: str, index: int) -> None:
        self.engine.abort(request_id, index)


@pytest.fixture
def in_process(tiny_model: Callable[[str], Path]) -> Iterator[InProcess]:
    found = InProcess(tiny_model("qwen3"))
    yield found
    found.engine.close()


class Posts:
    """Sends bodies to an application."""

    def __init__(self, service: Service, backend: Any) -> None:
        self.service, self.backend = service, backend
        self.access = Access()

    def __call__(self, path: str, body: Any = None, method: str = "POST", **sent: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(
                http_app(self.service, self.backend, self.access), raise_app_exceptions=False
            )
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, **sent, **({} if body is None else {"json": body}))

        return asyncio.run(run())


@pytest.fixture
def post(service: Service, backend: Any) -> Posts:
    return Posts(service, backend)


@pytest.fixture
def ask_pooling(pooling: Service, backend: Any) -> Posts:
    return Posts(pooling, backend)
