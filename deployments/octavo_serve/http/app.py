"""The HTTP surface: routes, bodies and their limit, server-sent events, error bodies. Knows no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import OctavoError
from octavo_serve.api.access import Access, Caller, Rules
from octavo_serve.api.bounds import LARGE_BODY
from octavo_serve.api.service import Service
from octavo_serve.http.about import add_about
from octavo_serve.http.door import CALLER, Door
from octavo_serve.http.replies import json_reply, to_json, to_json_in_slices
from octavo_serve.surfaces.openai.conversion import B, parse
from octavo_serve.surfaces.openai.errors import BodyTooLarge, ErrorBody, ErrorReply, error_response, reply_for
from octavo_serve.surfaces.openai.responses import is_large
from octavo_serve.surfaces.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingBody,
    TokenizeRequest,
)
from octavo_serve.telemetry import ShardStats, Telemetry

EVENT_STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Backend(Protocol):
    """What the routes need to know about the shards as a whole."""

    async def shard_stats(self) -> ShardStats:
        """Statistics of every shard that answers; a model none of whose shards does has an empty list."""
        ...


class _App(Starlette):
    """Starlette with the door outermost: also before what answers exceptions that nobody handles."""

    def __init__(self, access: Access, telemetry: Telemetry) -> None:
        super().__init__()
        self._door = partial(Door, access=access, telemetry=telemetry)

    def build_middleware_stack(self) -> ASGIApp:
        return self._door(super().build_middleware_stack())


def http_app(service: Service, backend: Backend, access: Access | None = None) -> Starlette:
    """The gateway's ASGI application.

    Args:
        access: who may ask; None lets everybody in and tells everything.
    """
    access = access or Access()
    app = _App(access, service.telemetry)
    _add_generation(app, service, access)
    _add_models(app, service, access)
    _add_text(app, service)
    _add_operations(app, service, backend, access)
    add_about(app, service)
    _add_errors(app, service.telemetry)
    return app


def _add_generation(app: Starlette, service: Service, access: Access) -> None:
    async def chat_completions(request: Request) -> Response:
        body = await body_of(request, ChatRequest, service)
        tells = admit(access.rules, request, body)
        session, headers = session_of(request), dict[str, str]()
        if body.stream:
            return await event_stream(service.chat_stream(body, session, headers), service, headers, tells)
        return await answer_reply(await service.chat(body, session, headers), service, headers, tells)

    async def completions(request: Request) -> Response:
        body = await body_of(request, CompletionRequest, service)
        tells = admit(access.rules, request, body)
        session, headers = session_of(request), dict[str, str]()
        if body.stream:
            events = service.complete_stream(body, session, headers)
            return await event_stream(events, service, headers, tells)
        return await answer_reply(await service.complete(body, session, headers), service, headers, tells)

    app.add_route("/v1/chat/completions", chat_completions, methods=["POST"])
    app.add_route("/v1/completions", completions, methods=["POST"])


def _add_models(app: Starlette, service: Service, access: Access) -> None:
    async def models(request: Request) -> Response:
        cards = service.models.cards(access.rules.explains(request.scope.get(CALLER)))
        return json_reply({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        return json_reply(service.models.card(name, access.rules.explains(request.scope.get(CALLER))))

    app.add_route("/v1/models", models, methods=["GET"])  # and HEAD
    app.add_route("/v1/models/{name:path}", model, methods=["GET"])


def _add_text(app: Starlette, service: Service) -> None:
    async def tokenize(request: Request) -> Response:
        body = await body_of(request, TokenizeRequest, service)
        return json_reply(await service.tokenize(body))

    async def detokenize(request: Request) -> Response:
        body = await body_of(request, DetokenizeRequest, service)
        return json_reply(await service.detokenize(body))

    app.add_route("/tokenize", tokenize, methods=["POST"])
    app.add_route("/detokenize", detokenize, methods=["POST"])


def _add_operations(app: Starlette, service: Service, backend: Backend, access: Access) -> None:
    async def health(request: Request) -> Response:
        """What is known of each model, at once: 200 unless no model can answer. Without a key that is all it says."""
        entries = service.models.entries
        ready = [entry.status == "ready" for entry in entries.values()]
        status = "ok" if all(ready) else "degraded" if any(ready) else "unhealthy"
        answer: dict[str, Any] = {"status": status}
        if access.rules.explains(request.scope.get(CALLER)):
            answer["shards"] = {name: entry.shards for name, entry in entries.items()}
            answer["models"] = {name: {"status": e.status, "reason": e.reason} for name, e in entries.items()}
        return json_reply(answer, 200 if any(ready) else 503)

    async def metrics(request: Request) -> Response:
        tells = access.rules.tells(request.scope.get(CALLER))
        return Response(service.telemetry.render(await backend.shard_stats(), tells), media_type=METRICS_TEXT)

    app.add_route("/health", health, methods=["GET"])
    app.add_route("/metrics", metrics, methods=["GET"])


def _add_errors(app: Starlette, telemetry: Telemetry) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        reply = reply_for(error)
        telemetry.errors.labels(reply.status).inc()
        return error_response(reply)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        body: ErrorBody = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
        return error_response(ErrorReply(error.status_code, body, dict(error.headers or {})))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(OctavoError, on_error)
    app.add_exception_handler(Exception, on_error)


def session_of(request: Request) -> str:
    """What keeps a client's requests together, as its headers say; "" when they do not."""
    return request.headers.get("x-session-affinity") or request.headers.get("x-session-id") or ""


async def body_of(request: Request, kind: type[B], service: Service) -> B:
    """The validated body; a large one is parsed beside the event loop.

    Raises:
        BadRequest: it is wrong; BodyTooLarge when it is too large.
    """
    bounds = service.bounds
    body = await read_body(request, service.limits.max_body_bytes or bounds.num_bytes)
    if len(body) < LARGE_BODY:
        return parse(kind, body, bounds)
    return await service.body_threads.run(parse, kind, body, bounds)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to exceed `limit` bytes.

    Raises:
        BodyTooLarge: it does.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {declared} bytes; at most {limit} are accepted")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"the body has more than the accepted {limit} bytes")
    return bytes(body)


def admit(rules: Rules, request: Request, body: SamplingBody) -> bool:
    """Hold a request to the rules: its cache namespace and priority; returns whether its answer tells of the cache.

    Raises:
        BadRequest: it says what clients may not.
    """
    caller = request.scope.get(CALLER, Caller())
    body.priority = rules.priority(body.priority)
    body.cache_salt = rules.cache_salt(caller, body.cache_salt)
    return rules.tells(caller)


async def answer_reply(answer: Mapping[str, Any], service: Service, headers: dict[str, str], tells: bool) -> Response:
    """An answer, and `headers` about where it came from where it `tells`."""
    told = answer if tells else untelling(answer)
    body = await service.threads.finish(to_json_in_slices, told) if is_large(told) else to_json(told)
    return Response(body, headers=headers if tells else None, media_type="application/json")


def untelling(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """An answer or an event whose usage does not say how much of the prompt was cached."""
    usage = answer.get("usage")
    return answer if usage is None else {**answer, "usage": {**usage, "prompt_tokens_details": None}}


class EventStream(StreamingResponse):
    """Server-sent events; a client that leaves closes the generator behind them at once.

    Serve cancels the request of a client that leaves, so nothing here listens for it: Starlette's own task for that
    costs a tenth of a short request. The last event and the end are one message: each costs 25 us of CPU. The events
    are read in a task of their own: what wakes up for each would else be every call from uvicorn's down to here, too.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(self._pump(send))

    async def _pump(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self.body_iterator:
                await send({"type": "http.response.body", "body": event, "more_body": event is not DONE})


async def event_stream(
    events: AsyncGenerator[Mapping[str, Any], None], service: Service, headers: Mapping[str, str], tells: bool
) -> Response:
    """Stream events, once the first is there: until then an error is still an HTTP error, and `headers` may grow.

    Args:
        tells: whether they say where they came from, and what was cached.
    """
    first = await anext(events)
    all_headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers if tells else {})}
    write = _event if tells else _untelling_event
    return EventStream(_sse(first, events, service, write), headers=all_headers, media_type=EVENT_STREAM)


async def _sse(
    first: Mapping[str, Any],
    events: AsyncGenerator[Mapping[str, Any], None],
    service: Service,
    write: Callable[..., bytes],
) -> AsyncGenerator[bytes, None]:
    write_large = partial(write, encode=to_json_in_slices)
    async with aclosing(events):
        try:
            yield await service.threads.finish(write_large, first) if is_large(first) else write(first)
            async for event in events:
                yield await service.threads.finish(write_large, event) if is_large(event) else write(event)
        except Exception as error:  # the status line is long gone: the error is an event
            reply = reply_for(error)
            service.telemetry.errors.labels(reply.status).inc()
            yield _event(reply.body)
        yield DONE


def _event(value: Mapping[str, Any], encode: Callable[[Mapping[str, Any]], bytes] = to_json) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def _untelling_event(value: Mapping[str, Any], encode: Callable[[Mapping[str, Any]], bytes] = to_json) -> bytes:
    return _event(untelling(value), encode)
