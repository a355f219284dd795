"""The gateway: the HTTP and handle ingress in front of the shards."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.handlers
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from octavo.errors import BadRequest, ConfigError
from octavo.routing.admission import QueueLimits
from octavo.routing.recorded import recorded_router
from octavo.routing.router import RoutingConfig
from octavo.source import Source
from octavo.text.recommended import recommended_sampling
from octavo_serve.api.access import Access, Caller
from octavo_serve.api.adapters import AdapterSettings
from octavo_serve.api.batches.runner import Reply, Runner
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.explaining import Explaining
from octavo_serve.api.fleet import Fleet
from octavo_serve.api.model import Defaults
from octavo_serve.api.operation import Operation, answered
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.surface import A, E, Surface
from octavo_serve.api.telemetry import ModelState, ShardStats, Telemetry, Watched
from octavo_serve.api.tracing import TraceIds, Tracer
from octavo_serve.config.placement import unplaceable
from octavo_serve.config.settings import (
    NO_EXPORTER,
    BatchSettings,
    ModelSettings,
    ReplicaRange,
    TraceSettings,
    deployment_name,
    load_settings,
)
from octavo_serve.gateway.drain import LEAVING, Drain
from octavo_serve.gateway.fleet import GatewayFleet
from octavo_serve.gateway.garbage import collect
from octavo_serve.gateway.keeper import Keeper
from octavo_serve.gateway.picker import Picker, QueueSettings
from octavo_serve.gateway.scaling import ScalingReader
from octavo_serve.gateway.shard_client import Failover, ShardClient
from octavo_serve.gateway.unread import Unread
from octavo_serve.gateway.watch import Deployments, load_text, watch_room, watch_shards
from octavo_serve.http.app import App, http_app
from octavo_serve.http.inside import ask
from octavo_serve.logs import take_in_engine
from octavo_serve.ports import is_loopback
from octavo_serve.ray_private import Deployment, http_host, keep_serve_at_home, process_is_open, session_folder
from octavo_serve.ray_token import UNAUTHENTICATED, close_token
from octavo_serve.surfaces.chat.schemas import ChatChunk, ChatCompletion, ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import Completion, CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS
from octavo_serve.surfaces.embeddings.operations import EMBEDDINGS
from octavo_serve.surfaces.embeddings.schemas import EmbeddingList, EmbeddingRequest
from octavo_serve.surfaces.rerank.operations import V1 as RERANK
from octavo_serve.surfaces.rerank.schemas import Reranked, RerankRequest
from octavo_serve.surfaces.scoring.classify import CLASSIFY
from octavo_serve.surfaces.scoring.schemas import Classifications, ClassifyRequest, ScoreRequest, Scores
from octavo_serve.surfaces.scoring.score import SCORE
from octavo_serve.surfaces.served import BATCHED
from octavo_serve.wire.scaling import scaling_key
from octavo_serve.wire.weights import weights_key

logger = logging.getLogger("ray.serve")

FAST = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "Serve's throughput settings",
    "RAY_SERVE_ENABLE_HA_PROXY": "HAProxy in front of the gateways",
}
"""Environment of Ray's processes that `octavo serve` sets, and what it switches on; see docs/serve_cost.md."""

SWITCH_SECONDS = 0.0005
"""Longest time that a thread's Python keeps the event loop from going on: encoding a batch of spans takes 9 ms, and the
grammars of many tools seconds. Beside hostile schemas the loop was late by 5.0 ms (p99; four runs, 4.0 to 16.3) with
Python's own 5 ms, by 3.9 (2.1 to 5.4) with this; other work on the machine made an idle process late by 1.8."""

LOG_SECONDS = 1.0
"""Until a line that says whose key a request had can be read in the log."""


class Gateway:
    """Validates, tokenises, routes, detokenises. One of these serves HTTP; from Python the same is a handle call:

        gateway = serve.get_app_handle("octavo")
        answer = gateway.chat.remote({"messages": [{"role": "user", "content": "Hello"}]}).result()
        for chunk in gateway.options(stream=True).chat_stream.remote({...}): ...

    Requests and answers are those of the HTTP API; errors are raised as `octavo.errors`. The second argument of
    a call may name the tenant whose it is.
    """

    def __init__(self, shards: dict[str, DeploymentHandle[Any]]) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        keep_serve_at_home()
        take_in_engine()
        logger.addFilter(TraceIds())
        if off := [what for name, what in FAST.items() if os.environ.get(name) != "1"]:
            logger.warning("Slower than it could be, for these are off: %s. `octavo serve` sets them.", ", ".join(off))
        if process_is_open():
            logger.warning(UNAUTHENTICATED)
        else:
            close_token(os.environ)  # `serve run` alone leaves it readable for everybody
        # `shards` only tells Serve that these deployments belong to the application: `reconfigure` says which to use
        self.service = Service(Registry(), Limits(), Telemetry())
        self.access = Access()
        self._deployments = Deployments(serve.get_replica_context().app_name)
        self._served: dict[str, _Served] = {}
        self._scaling = ScalingReader(self._scaling_keys, partial(setattr, self.service.telemetry, "scaling"))
        self._fleet = self._watched()
        self._closing: set[asyncio.Task[None]] = set()
        self._drain = Drain()
        self._unread = Unread()
        self._traces: TraceSettings | None = None
        self._app: App | None = None
        self._batches: asyncio.Task[None] | None = None
        self._explain_bytes = 0
        self._watching: list[asyncio.Task[None]] = []
        threading.Thread(target=_show_logs, name="octavo-logs", daemon=True).start()
        gc.freeze()  # 126,000 objects of modules, which each look at all objects went through: 75 ms with the loop held

    async def reconfigure(self, args: dict[str, Any]) -> None:
        """Serve these models from now on; those whose settings are the same go on as they are."""
        if not self._watching:
            watches = self.service.lateness.watch(), collect(self._num_running)
            self._watching = [asyncio.create_task(watch) for watch in watches]
        settings = load_settings(args)
        loopback = is_loopback(await _bind_host())  # nothing below waits: requests see old or new, no mix
        rules = settings.rules(loopback, settings.gateway.replicas)
        old, self._served = self._served, {}
        for model in settings.models:
            kept = old.pop(model.name, None)
            if kept is None or not kept.model.same_engine(model) or kept.model.defaults != model.defaults:
                self._served[model.name] = self._serve(model, settings.router.config)
            else:
                self._served[model.name] = replace(kept, model=model)
            picker = self._served[model.name].picker
            self._served[model.name].entry.update(price=model.price.price, weight_folders=tuple(model.weight_folders))
            picker.router.config = settings.router.config
            limits = QueueLimits(model.max_queue_s, model.max_queued_tokens)
            loading, policy = settings.gateway.loading_wait_s, model.engine.scheduling_policy
            picker.queue = QueueSettings(limits, model.most_shards, loading, policy)
        for gone in old.values():
            gone.close(self._closing)
        gateway, entries = settings.gateway, {name: served.entry for name, served in self._served.items()}
        explain = rules.keys is None or rules.disclose
        self.service.models.configure(entries, settings.aliases, gateway.loading_wait_s, explain)
        of_models = {model.name: _adapters(model) for model in settings.models}
        self.service.models.adapters.configure(of_models, alone=gateway.replicas == 1)
        failover = Failover(gateway.failover_timeout_s, gateway.max_failovers, gateway.shard_silence_s)
        for served in self._served.values():
            served.client.failover = failover
        watched = {name: Watched(served.picker.router, served.state) for name, served in self._served.items()}
        self.service.telemetry.models = watched
        name = serve.get_replica_context().replica_id.unique_id
        self.service.telemetry.gateway = name if gateway.replicas > 1 else ""
        self._trace(gateway.traces)
        self._explain(gateway.explain_bytes)
        self.access.rules = rules
        self.service.telemetry.ledger.keep({"", *rules.tenants})
        self.service.records.settings = gateway.records(_shared_file)
        self.service.limits = Limits(gateway.max_body_bytes, gateway.max_prompts, gateway.max_n)
        self._run_batches(gateway.batches)

    def _run_batches(self, settings: BatchSettings | None) -> None:
        """Work on batches, if there is a folder for them."""
        self.service.batches.settings = None if settings is None else settings.store
        if settings is None and self._batches is not None:
            self._batches.cancel()
            self._batches = None
        if settings is not None and self._batches is None:
            self.service.batches.paths = BATCHED
            runner = Runner(self.service.batches, self._ask, self._room_below, self._longest_body)
            self._batches = asyncio.create_task(runner.run())

    async def _ask(self, owner: str, path: str, body: bytes) -> Reply:
        """Answer a line of a batch, in the name of whoever began it."""
        if self._app is None:  # Serve has not asked for it yet
            return Reply(503, b"{}")
        keys = self.access.rules.keys
        caller = Caller() if keys is None else keys.named(owner)
        if caller is None:
            return Reply(401, b'{"error":{"message":"whoever began the batch has no key any more"}}')
        return await ask(self._app.inside, caller, path, body)

    def _room_below(self, model: str) -> int:
        try:
            found = self.service.models.find(model or None)
            return self.service.lateness.spare(self._served[found.name].client.room_below())
        except BadRequest:
            return 1  # there is no such model: its lines are told so

    def _longest_body(self) -> int:
        return self.service.limits.max_body_bytes or self.service.bounds_of_many.num_bytes

    def _explain(self, max_bytes: int) -> None:
        """Remember so much of the last requests from now on; what was remembered is forgotten where that changes."""
        if max_bytes != self._explain_bytes:
            self._explain_bytes = max_bytes
            self.service.explaining = Explaining(max_bytes, self.service.telemetry) if max_bytes else None

    def _trace(self, settings: TraceSettings | None) -> None:
        """Trace requests by these settings from now on; what was traced before is sent beside the loop."""
        if settings == self._traces:
            return
        old, new = self.service.tracer, _tracer(settings, self.service.telemetry)
        self._traces, self.service.tracer = settings, new
        if old is not None:
            threading.Thread(target=old.close, name="octavo-traces", daemon=True).start()

    def _serve(self, model: ModelSettings, routing: RoutingConfig) -> _Served:
        """Look after a model from now on, in the background: nothing here waits for it."""
        deployment, app = deployment_name(model.name), serve.get_replica_context().app_name
        shards = Deployment(deployment, app)
        picker = Picker(routing, shards)
        if (record := model.engine.record) is not None:
            name = f"{record}/{serve.get_replica_context().replica_id.unique_id}"
            picker.router = recorded_router(routing, name, model.most_requests)
        client = ShardClient(picker, Failover(), self.service.telemetry.moves_of(model.name), self._unread,
                             self.service.follow)  # fmt: skip
        shards.watch(client.listed)
        keeper = Keeper(client, model.source, weights_key(app, deployment))
        entry = ModelEntry(
            model.name, int(time.time()), client, model.on_demand, cost=picker.router.cost, keeper=keeper
        )
        client.on_change = lambda: entry.update(asleep=client.asleep, info=client.info or entry.info)
        tasks = [
            asyncio.create_task(load_text(entry, model.source, partial(_defaults, model))),
            asyncio.create_task(watch_shards(entry, client, partial(self._deployments.state, deployment))),
            asyncio.create_task(watch_room(entry, partial(_no_room, model))),
        ]
        return _Served(model, entry, picker, client, tasks)

    def _watched(self) -> Fleet:
        name = serve.get_replica_context().replica_id.unique_id
        source = GatewayFleet(
            name,
            served=lambda: self._served,
            stats=self.shard_stats,
            scaling=lambda: self.service.telemetry.scaling,
            deployed=self._deployments.states,
            on_leave=lambda: self._fleet.end("a gateway is about to end, perhaps this one"),
        )
        return Fleet(source)

    def _scaling_keys(self) -> dict[str, str]:
        app, served = serve.get_replica_context().app_name, self._served.items()
        scale = [name for name, one in served if isinstance(one.model.replicas, ReplicaRange)]
        return {name: scaling_key(app, deployment_name(name)) for name in scale}

    def __serve_build_asgi_app__(self) -> Starlette:
        app = http_app(self.service, self, self.access, fleet=self._fleet)
        app.add_middleware(self._drain.around)
        self._app = app
        return app

    async def drain(self) -> int:
        """Take no more HTTP requests; returns how many requests still run, those of handles among them."""
        self._drain.begun = True
        if self._batches is not None:
            self._batches.cancel()
        self._fleet.end(LEAVING, over=True)
        return self._drain.running + self._num_running()

    def _num_running(self) -> int:
        return sum(served.client.num_running() for served in self._served.values())

    async def chat(self, request: ChatRequest | Mapping[str, Any], tenant: str = "") -> ChatCompletion:
        """Answer a chat; `request` has the fields of /v1/chat/completions."""
        return await self._answer(CHAT, request, tenant)

    async def chat_stream(self, request: ChatRequest | Mapping[str, Any], tenant: str = "") -> AsyncIterator[ChatChunk]:
        """The same answer chunk by chunk."""
        async with aclosing(self._events(CHAT, request, tenant)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, request: CompletionRequest | Mapping[str, Any], tenant: str = "") -> Completion:
        """Continue one or many prompts; `request` has the fields of /v1/completions."""
        return await self._answer(COMPLETIONS, request, tenant)

    async def complete_stream(
        self, request: CompletionRequest | Mapping[str, Any], tenant: str = ""
    ) -> AsyncIterator[Completion]:
        """The same answer chunk by chunk."""
        async with aclosing(self._events(COMPLETIONS, request, tenant)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, request: EmbeddingRequest | Mapping[str, Any], tenant: str = "") -> EmbeddingList:
        """Vectors of texts; `request` has the fields of /v1/embeddings."""
        answer: EmbeddingList = await self._answered(EMBEDDINGS, request, tenant)
        return answer

    async def rerank(self, request: RerankRequest | Mapping[str, Any], tenant: str = "") -> Reranked:
        """Documents ordered by a query; `request` has the fields of /v1/rerank."""
        answer: Reranked = await self._answered(RERANK, request, tenant)
        return answer

    async def score(self, request: ScoreRequest | Mapping[str, Any], tenant: str = "") -> Scores:
        """How well texts answer texts; `request` has the fields of /score."""
        answer: Scores = await self._answered(SCORE, request, tenant)
        return answer

    async def classify(self, request: ClassifyRequest | Mapping[str, Any], tenant: str = "") -> Classifications:
        """The classes of texts; `request` has the fields of /classify."""
        answer: Classifications = await self._answered(CLASSIFY, request, tenant)
        return answer

    async def _answer(self, surface: Surface[Any, A, E], request: Any, tenant: str) -> A:
        return await self.service.answer(surface, _parsed(surface.body, request), self.access.rules.tenant(tenant))

    def _events(self, surface: Surface[Any, A, E], request: Any, tenant: str) -> AsyncGenerator[E, None]:
        return self.service.events(surface, _parsed(surface.body, request), self.access.rules.tenant(tenant))

    async def _answered(self, operation: Operation, request: Any, tenant: str) -> Any:
        body = _parsed(operation.body, request)
        return await answered(operation, self.service, body, self.access.rules.tenant(tenant))

    async def shard_stats(self) -> ShardStats:
        """Statistics of every shard that answers, by model; also reads what the autoscaler says now."""
        clients = {name: served.client for name, served in self._served.items()}
        await self._scaling.refresh()
        found = await asyncio.gather(*(client.stats() for client in clients.values()))
        return dict(zip(clients, found, strict=True))


@dataclass(frozen=True, slots=True)
class _Served:
    """A model's settings, what is known of it, and the tasks that find it out."""

    model: ModelSettings
    entry: ModelEntry
    picker: Picker
    client: ShardClient
    tasks: list[asyncio.Task[None]]

    def state(self) -> ModelState:
        """What is known of the model now."""
        picker = self.picker
        return ModelState(
            status=self.entry.status,
            shards=self.entry.shards,
            least=self.model.fewest_shards,
            most=self.model.most_shards,
            running=self.client.num_running(),
            waiting=picker.waiting,
            queue_seconds=picker.queue_seconds(),
            queue_limit=picker.queue.limits.max_seconds,
            refused=picker.refused,
        )

    def close(self, closing: set[asyncio.Task[None]]) -> None:
        """Take no more requests; `closing` keeps the task that waits for those that run."""
        for task in self.tasks:
            task.cancel()
        task = asyncio.create_task(self.client.close())
        closing.add(task)
        task.add_done_callback(closing.discard)


def _defaults(model: ModelSettings, source: Source) -> Defaults:
    """What requests get where they leave something open: as the config says, else as the model's makers recommend."""
    recommended = recommended_sampling(source) if model.generation_config == "auto" else {}
    override = model.override_generation_config.model_dump(exclude_none=True)
    yes_no = model.ranker == "yes_no" or (model.ranker == "auto" and "reranker" in model.source.lower())
    return Defaults(model.default_max_tokens, recommended | override, model.response_template, yes_no)


def _adapters(model: ModelSettings) -> AdapterSettings:
    return AdapterSettings(model.source, model.lora, tuple(model.lora_folders))


def _tracer(settings: TraceSettings | None, telemetry: Telemetry) -> Tracer | None:
    if settings is None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from octavo_serve.gateway.spans import Spans
    except ImportError:
        raise ConfigError(NO_EXPORTER) from None
    return Spans(settings, telemetry.count_spans)


def _no_room(model: ModelSettings) -> str | None:
    """Why the cluster cannot hold the model's shards, whatever else runs there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return unplaceable(model.group, max(1, model.fewest_shards), nodes)


def _shared_file() -> Path:
    """A file of this application that all of its gateways on this node find."""
    app = blake2b(serve.get_replica_context().app_name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Path(session_folder()) / f"octavo-responses-{app}.sqlite"


def _show_logs() -> None:
    """Write out once a second what Serve would keep until there are 1,000 lines, with its throughput settings."""
    while True:
        time.sleep(LOG_SECONDS)
        for handler in logger.handlers:
            if isinstance(handler, logging.handlers.MemoryHandler):
                handler.flush()


async def _bind_host() -> str:
    """Where clients reach the server; `octavo serve` says it, for behind its HAProxy Serve listens elsewhere."""
    return os.environ.get("OCTAVO_HOST") or await http_host()


def _parsed(kind: Any, request: Any) -> Any:
    return request if isinstance(request, kind) else parse(kind, request)
