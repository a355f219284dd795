"""The gateway as an ASGI application: routes, bodies and their limit, failures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import BadRequest, OctavoError
from octavo_serve.api.access import Access, Caller
from octavo_serve.api.body import B, parse
from octavo_serve.api.bounds import LARGE_BODY, MAX_NAME, BodyBounds
from octavo_serve.api.exposition import render
from octavo_serve.api.failures import BodyTooLarge, Failure, failure_of
from octavo_serve.api.fleet import Fleet
from octavo_serve.api.operation import Call, Content, Operation, Query, read_query
from octavo_serve.api.service import Service
from octavo_serve.api.surface import A, Encoded, Errors, Raw, Surface, Writer, to_json
from octavo_serve.api.telemetry import ShardStats, Telemetry
from octavo_serve.api.writing import write_answer
from octavo_serve.http.about import add_about
from octavo_serve.http.askers import asker_of
from octavo_serve.http.door import BELOW, CALLER, Door, path_of
from octavo_serve.http.fleet import add_fleet
from octavo_serve.http.pages import add_pages
from octavo_serve.http.replies import answer_reply, failure_reply, json_reply, routing_headers
from octavo_serve.http.streams import event_stream, failed_stream
from octavo_serve.http.traced import Traced, tell_failure
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.served import OPERATIONS, SURFACES

METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
DEADLINE = "x-request-deadline-ms"


class Backend(Protocol):
    """What the routes need to know about the shards as a whole."""

    async def shard_stats(self) -> ShardStats:
        """Statistics of every shard that answers; a model none of whose shards does has an empty list."""
        ...


ErrorsOf = Callable[[Scope], Errors]
"""The error format of a request's path: that of its protocol, otherwise OpenAI's."""


class App(Starlette):
    """Starlette with the door outside even the handler of unhandled exceptions, and traces outside the door."""

    def __init__(self, service: Service, access: Access, errors_of: ErrorsOf, traced: list[str]) -> None:
        super().__init__()
        self._door = partial(Door, access=access, telemetry=service.telemetry, errors_of=errors_of)
        self._traced = partial(Traced, service=service, paths=traced)

    def build_middleware_stack(self) -> ASGIApp:
        self._behind_door = super().build_middleware_stack()
        return self._traced(self._door(self._behind_door))

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application behind the door."""
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self._behind_door({**scope, "app": self}, receive, send)


def http_app(
    service: Service,
    backend: Backend,
    access: Access | None = None,
    surfaces: tuple[Surface[Any, Any, Any], ...] = SURFACES,
    operations: tuple[Operation, ...] = OPERATIONS,
    fleet: Fleet | None = None,
) -> App:
    """The gateway's ASGI application.

    Args:
        access: access rules; None admits everybody and discloses everything.
        surfaces, operations: the protocols it speaks.
        fleet: what those who watch are told; None: nobody can.
    """
    access = access or Access()
    errors_of = _errors_by_path(*surfaces, *operations)
    traced = [surface.path for surface in surfaces] + [one.path for one in operations if one.method == "POST"]
    app = App(service, access, errors_of, traced)
    for surface in surfaces:
        _add_surface(app, surface, service, access)
    for operation in operations:
        _add_operation(app, operation, service, access)
    _add_models(app, service, access)
    _add_state(app, service, backend, access)
    if fleet is not None:
        add_fleet(app, fleet, access)
    add_about(app, service, surfaces, operations)
    add_pages(app)
    _add_errors(app, service.telemetry, errors_of)
    return app


def _errors_by_path(*served: Surface[Any, Any, Any] | Operation) -> ErrorsOf:
    # a route's parameter matches no line break: such a path is not found, which is said in its protocol's format
    formats = {re.compile(compile_path(one.path)[0].pattern, re.DOTALL): one.errors for one in served}

    def errors_of(scope: Scope) -> Errors:
        path = path_of(scope)
        return next((errors for pattern, errors in formats.items() if pattern.match(path)), ERRORS)

    return errors_of


def _add_surface(app: Starlette, surface: Surface[Any, Any, Any], service: Service, access: Access) -> None:
    async def generate(request: Request) -> Response:
        if (instead := surface.instead) is not None and not service.models.writes(request.path_params.get("model")):
            return await _performed(request, instead, service, access)
        call = await call_of(request, service, access, surface.body, raw=surface.raw)
        try:
            return await answer_to(call)
        except Exception as error:
            if surface.fails_in_stream and surface.streams(call.body):
                return failed_stream(surface, error, service.telemetry)
            raise

    async def answer_to(call: Call) -> Response:
        writer = surface.writer(call.body, await service.job(await surface.asked(service, call)), call.tells)
        if surface.detach is not None and (at_once := await surface.detach(service, call.body, writer)) is not None:
            return answer_reply(at_once)
        if surface.streams(call.body):
            return await event_stream(surface, writer, service)
        whole = await service.whole(writer)
        put, put_large = partial(_encoded, writer, to_json), partial(_encoded, writer, surface.large_json)
        answer = await write_answer(writer, whole, service.threads, put, put_large)
        await writer.settle()
        headers = routing_headers(whole.begun.values()) if writer.tells else {}
        return Response(answer.content, headers={**headers, **answer.headers}, media_type=answer.media_type)

    app.add_route(surface.path, generate, methods=["POST"])


def _encoded(writer: Writer[A, Any], json: Callable[[Any], bytes], answer: A) -> Encoded:
    return writer.encoded(answer, json)


def _add_operation(app: Starlette, operation: Operation, service: Service, access: Access) -> None:
    async def perform(request: Request) -> Response:
        return await _performed(request, operation, service, access)

    app.add_route(operation.path, perform, methods=[operation.method])  # HEAD where there is GET


async def _performed(request: Request, operation: Operation, service: Service, access: Access) -> Response:
    call = await call_of(
        request, service, access, operation.body, operation.query, many=operation.many, form=operation.form is not None
    )
    return answer_reply(await operation.run(service, call))


def _add_models(app: Starlette, service: Service, access: Access) -> None:
    async def models(request: Request) -> Response:
        cards = service.models.cards(access.rules.explains(request.scope.get(CALLER)))
        return json_reply({"object": "list", "data": cards})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        return json_reply(service.models.card(name, access.rules.explains(request.scope.get(CALLER))))

    app.add_route("/v1/models", models, methods=["GET"])  # and HEAD
    app.add_route("/v1/models/{name:path}", model, methods=["GET"])


def _add_state(app: Starlette, service: Service, backend: Backend, access: Access) -> None:
    async def health(request: Request) -> Response:
        """The state of each model, without waiting: 200 unless no model can answer. Without a key, only this status.

        One that an operator has put to sleep is well: whoever restarted the server for it would wake it.
        """
        entries = service.models.entries
        ready = [entry.status in ("ready", "asleep") for entry in entries.values()]
        status = "ok" if all(ready) else "degraded" if any(ready) else "unhealthy"
        answer: dict[str, Any] = {"status": status}
        if access.rules.explains(request.scope.get(CALLER)):
            answer["shards"] = {name: entry.shards for name, entry in entries.items()}
            answer["models"] = {name: {"status": e.status, "reason": e.reason} for name, e in entries.items()}
        return json_reply(answer, 200 if any(ready) else 503)

    async def metrics(request: Request) -> Response:
        caller = request.scope.get(CALLER, Caller())
        tells, operates = access.rules.tells(caller), access.rules.operates(caller)
        text = await render(service.telemetry, await backend.shard_stats(), tells, operates)
        return Response(text, media_type=METRICS_TEXT)

    app.add_route("/health", health, methods=["GET"])
    app.add_route("/metrics", metrics, methods=["GET"])


def _add_errors(app: Starlette, telemetry: Telemetry, errors_of: ErrorsOf) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        failure = failure_of(error)
        telemetry.failed(failure.status, failure.code)
        tell_failure(failure)
        return failure_reply(failure, errors_of(request.scope))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        failure = Failure(error.status_code, message, headers=dict(error.headers or {}))
        return failure_reply(failure, errors_of(request.scope))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(OctavoError, on_error)
    app.add_exception_handler(Exception, on_error)


async def call_of(
    request: Request,
    service: Service,
    access: Access,
    body: type[Any] | None = None,
    query: type[Query] | None = None,
    raw: Raw[Any] | None = None,
    *,
    many: bool = False,
    form: bool = False,
) -> Call:
    """A request as the core knows it: its body and parameters are validated, its headers read.

    Args:
        many: the body may hold many texts.
        form: the body is left to who reads it as it comes.

    Raises:
        BadRequest: naming what is wrong; BodyTooLarge if the body is too large.
    """
    path = {name: str(value) for name, value in request.path_params.items()}
    if name := next((name for name, value in path.items() if len(value) > MAX_NAME), None):
        raise BadRequest(f"{name} has more than {MAX_NAME} characters", name)
    bounds = service.bounds_of_many if many else service.bounds
    caller = request.scope.get(CALLER, Caller())
    headers, limit = request.headers, service.limits.max_body_bytes or bounds.num_bytes
    content = await read_body(request, limit) if body else b""
    return Call(
        query=read_query(query, _query_of(request)) if query else None,
        body=await body_of(content, headers, body, service, bounds, raw) if body else None,
        large=len(content) >= LARGE_BODY,
        path=path,
        caller=caller,
        asker=asker_of(caller, request),
        rules=access.rules,
        session=headers.get("x-session-affinity") or headers.get("x-session-id") or "",
        below=BELOW in request.scope,
        content=Content(headers.get("content-type", ""), request.stream()) if form else None,
        deadline_ms=_deadline(headers.get(DEADLINE)),
    )


def _deadline(text: str | None) -> float | None:
    """Milliseconds in a header.

    Raises:
        BadRequest: it holds no number; whether that is within bounds is checked with the body's.
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"{DEADLINE} must be a number of milliseconds, got {text!r:.80}", DEADLINE) from None


def _query_of(request: Request) -> dict[str, str | list[str]]:
    """Query parameters by name: a list of those that come several times, or whose name ends with []."""
    found: dict[str, str | list[str]] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        found[name.removesuffix("[]")] = values if name.endswith("[]") or len(values) > 1 else values[0]
    return found


async def body_of(
    content: bytes,
    headers: Mapping[str, str],
    kind: type[B],
    service: Service,
    bounds: BodyBounds,
    raw: Raw[B] | None = None,
) -> B:
    """The validated body; a large one is parsed in a thread.

    Raises:
        BadRequest: it is invalid.
    """
    read = partial(parse, kind) if raw is None else partial(raw.read, headers)
    return read(content, bounds) if len(content) < LARGE_BODY else await service.body_threads.run(read, content, bounds)


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
