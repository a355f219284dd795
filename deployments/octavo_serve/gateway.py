"""The gateway: the HTTP and handle ingress in front of the shards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from octavo.engine.stats import EngineStats
from octavo.errors import EngineDead, OctavoError, Overloaded
from octavo.request import Request, SequenceUpdate
from octavo_serve.openai.conversion import Limits, parse
from octavo_serve.openai.model import ModelInfo
from octavo_serve.openai.registry import ModelEntry, Registry
from octavo_serve.openai.routes import http_app
from octavo_serve.openai.schemas import ChatChunk, ChatCompletion, ChatRequest, Completion, CompletionRequest
from octavo_serve.openai.service import Service
from octavo_serve.settings import ModelSettings, deployment_name, load_settings
from octavo_serve.telemetry import ShardStats, Telemetry
from octavo_serve.watch import Deployments, load_text, watch_shards

STATS_TIMEOUT = 2.0
"""Seconds a shard may take to answer for /health and /metrics; its methods only read numbers."""


class Gateway:
    """Validates, tokenises, routes, detokenises. One of these serves HTTP; from Python the same is a handle call:

        gateway = serve.get_app_handle("octavo")
        answer = gateway.chat.remote({"messages": [{"role": "user", "content": "Hello"}]}).result()
        for chunk in gateway.options(stream=True).chat_stream.remote({...}): ...

    Requests and answers are those of the HTTP API; errors are raised as `octavo.errors`.
    """

    def __init__(self, shards: dict[str, DeploymentHandle[Any]]) -> None:
        # `shards` only tells Serve that these deployments belong to the application: `reconfigure` says which to use
        self.service = Service(Registry(), Limits(0, 0, 0), Telemetry())
        self._deployments = Deployments(serve.get_replica_context().app_name)
        self._served: dict[str, _Served] = {}

    async def reconfigure(self, args: dict[str, Any]) -> None:
        """Serve these models from now on; those whose settings are the same go on as they are."""
        settings = load_settings(args)
        old, self._served = self._served, {}
        for model in settings.models:
            kept = old.pop(model.name, None)
            if kept is None or not kept.model.same_engine(model):
                self._served[model.name] = self._serve(model)
            else:
                self._served[model.name] = kept
        for gone in old.values():
            gone.close()
        gateway, registry = settings.gateway, self.service.models
        registry.entries = {name: served.entry for name, served in self._served.items()}
        registry.aliases, registry.wait = settings.aliases, gateway.loading_wait_s
        self.service.limits = Limits(gateway.max_body_bytes, gateway.max_prompts, gateway.max_n)

    def _serve(self, model: ModelSettings) -> _Served:
        """Look after a model from now on, in the background: nothing here waits for it."""
        deployment = deployment_name(model.name)
        client = ShardClient(serve.get_deployment_handle(deployment, serve.get_replica_context().app_name))
        entry = ModelEntry(model.name, int(time.time()), client, model.on_demand)
        tasks = [
            asyncio.create_task(load_text(entry, model.source)),
            asyncio.create_task(watch_shards(entry, client, partial(self._deployments.state, deployment))),
        ]
        return _Served(model, entry, client, tasks)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(self.service, self)

    async def chat(self, request: ChatRequest | Mapping[str, Any]) -> ChatCompletion:
        """Answer a chat; `request` has the fields of /v1/chat/completions."""
        return await self.service.chat(_parsed(ChatRequest, request))

    async def chat_stream(self, request: ChatRequest | Mapping[str, Any]) -> AsyncIterator[ChatChunk]:
        """The same answer chunk by chunk."""
        async with aclosing(self.service.chat_stream(_parsed(ChatRequest, request))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, request: CompletionRequest | Mapping[str, Any]) -> Completion:
        """Continue one or many prompts; `request` has the fields of /v1/completions."""
        return await self.service.complete(_parsed(CompletionRequest, request))

    async def complete_stream(self, request: CompletionRequest | Mapping[str, Any]) -> AsyncIterator[Completion]:
        """The same answer chunk by chunk."""
        async with aclosing(self.service.complete_stream(_parsed(CompletionRequest, request))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def shard_stats(self) -> ShardStats:
        """Statistics of every shard that answers, by model."""
        clients = {name: served.client for name, served in self._served.items()}
        found = await asyncio.gather(*(client.stats() for client in clients.values()))
        return dict(zip(clients, found, strict=True))


@dataclass(frozen=True, slots=True)
class _Served:
    """A model's settings, what is known of it, and the tasks that find it out."""

    model: ModelSettings
    entry: ModelEntry
    client: ShardClient
    tasks: list[asyncio.Task[None]]

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()


def _parsed(kind: type[Any], request: Any) -> Any:
    return request if isinstance(request, kind) else parse(kind, request)


class ShardClient:
    """One model's shards behind a Serve handle; what Ray raises comes out as Octavo's errors."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._stream = handle.options(method_name="generate", stream=True)
        self._info: ModelInfo | None = None

    async def describe(self) -> ModelInfo:
        if self._info is None:
            with octavo_errors():
                self._info = await self._handle.describe.remote()
        return self._info

    async def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        response = self._stream.remote(request)
        assert isinstance(response, DeploymentResponseGenerator)
        try:
            with octavo_errors():
                async for updates in response:
                    yield updates
        finally:
            response.cancel()  # type: ignore[no-untyped-call]  # does nothing to a stream that has ended

    async def abort(self, request_id: str, index: int) -> None:
        # which shard has it only the router knows; the others ignore an id that is not theirs
        with octavo_errors():
            await self._handle.broadcast("abort", request_id, index).results_async()

    async def stats(self) -> list[tuple[str, EngineStats]]:
        """(shard name, statistics) of the shards that answer in time."""
        try:
            answers = await self._handle.broadcast("stats").results_async(
                timeout_s=STATS_TIMEOUT, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]


@contextmanager
def octavo_errors() -> Iterator[None]:
    """Raise what a shard raised, and Ray's own failures as `EngineDead` or `Overloaded`."""
    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, OctavoError) else error) from None
    except BackPressureError as error:
        raise Overloaded(str(error), retry_after=1.0) from None
    except (ActorDiedError, ActorUnavailableError, DeploymentUnavailableError, RequestCancelledError) as error:
        raise EngineDead(f"the shard is gone: {error}") from None
