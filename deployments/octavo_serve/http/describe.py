"""The API's description: /openapi.json, made from the models that validate requests, and /docs, an HTML page of it.

The page is plain HTML and loads nothing, so it works without Internet access.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

from pydantic import Field, TypeAdapter

from octavo import __version__
from octavo_serve.api.bounds import MAX_NAME
from octavo_serve.api.failures import QUOTA
from octavo_serve.api.operation import Operation, Query
from octavo_serve.api.surface import Errors, Framing, Surface
from octavo_serve.http.replies import JSON
from octavo_serve.http.schemas import Health, ModelCard, ModelList, TokenizerInfo, Version
from octavo_serve.surfaces.openai.errors import ERRORS

TEXT = "text/plain"
HTML = "text/html"
FORM = "multipart/form-data"

STATUSES = {
    400: "The request is wrong; the message says what to change, `param` which field.",
    401: "An API key is needed, or not one of this server's.",
    403: "The Host header does not name this server.",
    404: "There is no such model, or no such path.",
    405: "The path takes other methods; `Allow` lists them.",
    413: "The body is too large.",
    415: "The body is not declared to be JSON.",
    429: "The queue is full, or a quota is used up; `Retry-After` says when to try again.",
    500: "A fault of the server.",
    503: "The model is loading, asleep or has failed; `Retry-After` is there when it makes sense to try again.",
}
"""Status of an error -> when it is answered."""

_ALWAYS = (401, 403, 405, 415, 500)
_WITH_MODEL = (400, 404, 413, 429, 503)


@dataclass(frozen=True, slots=True)
class Described:
    """One method of one path.

    Attributes:
        kinds: content type -> type of a 200's body; None means text.
        stream: framing and event type of the stream that a 200 may be instead.
        also: further statuses with the same body.
        query: type of the query parameters.
        raw: another content type of its body.
        form: type of a form's fields, where that is the body.
        says: format of its errors.
    """

    method: str
    where: str
    summary: str
    kinds: dict[str, Any]
    body: type[Any] | None = None
    errors: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    query: type[Query] | None = None
    stream: tuple[Framing, Any] | None = None
    raw: str | None = None
    form: type[Any] | None = None
    says: Errors = ERRORS


class _OfModel(Query):
    model: str | None = Field(default=None, min_length=1)


_OTHERS = (
    Described("get", "/v1/models", "The models served here", {JSON: ModelList}),
    Described("get", "/v1/models/{name}", "One model", {JSON: ModelCard}, errors=(404,)),
    Described(
        "get",
        "/tokenizer_info",
        "A model's special tokens and chat template",
        {JSON: TokenizerInfo},
        errors=(400, 404, 503),
        query=_OfModel,
    ),
    Described("get", "/health", "What can answer; 503 when no model can", {JSON: Health}, also=(503,)),
    Described("get", "/ping", "200 when a model can answer, else 503", {}, also=(503,)),
    Described("post", "/ping", "The same", {}, also=(503,)),
    Described("get", "/metrics", "Metrics in Prometheus' text format", {TEXT: None}),
    Described("get", "/version", "Octavo's version", {JSON: Version}),
    Described("get", "/openapi.json", "This description", {JSON: dict[str, Any]}),
    Described("get", "/docs", "This description as a page", {HTML: None}),
)


Surfaces = tuple[Surface[Any, Any, Any], ...]
Operations = tuple[Operation, ...]


def described(surfaces: Surfaces, operations: Operations) -> list[Described]:
    """Everything that is served: the protocols, and what is always there."""
    streamed = [
        Described(
            "post",
            one.path.replace(":path}", "}"),
            one.summary,
            _kinds_of(one),
            one.body,
            _WITH_MODEL,
            stream=None if one.events is None else (one.framing, one.events),
            raw=None if one.raw is None else one.raw.media_type,
            says=one.errors,
        )
        for one in surfaces
    ]
    others = [
        Described(
            one.method.lower(),
            one.path.replace(":path}", "}"),
            one.summary,
            {one.media_type: one.answers},
            one.body,
            _WITH_MODEL,
            query=one.query,
            form=one.form,
            says=one.errors,
        )
        for one in operations
    ]
    return [*streamed, *others, *_OTHERS]


def _kinds_of(surface: Surface[Any, Any, Any]) -> dict[str, Any]:
    found = {} if surface.answers is None else {JSON: surface.answers}
    return found if surface.raw is None else {**found, surface.raw.media_type: None}


@cache
def openapi(surfaces: Surfaces, operations: Operations) -> bytes:
    """The API's description: OpenAPI 3.1, as JSON."""
    return json.dumps(_document(described(surfaces, operations))).encode()


def _document(found: list[Described]) -> dict[str, Any]:
    refs, schemas = _schemas(found)
    paths: dict[str, dict[str, Any]] = {}
    for operation in found:
        paths.setdefault(operation.where, {})[operation.method] = _of_operation(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__, "description": "OpenAI's API with vLLM's extensions."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }


def _schemas(found: list[Described]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Type -> its schema, and the definitions to which the schemas refer."""
    kinds = list(dict.fromkeys(kind for operation in found for kind in _kinds(operation) if kind is not None))
    inputs: list[Any] = [(str(i), "validation", TypeAdapter(kind)) for i, kind in enumerate(kinds)]
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    by_kind = {kind: schemas[str(i), "validation"] for i, kind in enumerate(kinds)}
    return by_kind, shared.get("$defs", {})


def _kinds(operation: Described) -> Iterator[Any]:
    """The types in an operation's description."""
    yield operation.body
    yield operation.form
    yield from operation.kinds.values()
    yield operation.stream and operation.stream[1]
    yield operation.says.kind


def _of_operation(operation: Described, refs: dict[Any, Any]) -> dict[str, Any]:
    content = {name: {"schema": _content(kind, refs)} for name, kind in operation.kinds.items()}
    if operation.stream is not None:
        framing, event = operation.stream
        content[framing.media_type] = {"schema": framing.describe(refs[event], refs[operation.says.kind])}
    answer: dict[str, Any] = {"description": operation.summary} | ({"content": content} if content else {})
    responses = {str(status): answer for status in (200, *operation.also)}
    for status in sorted((*_ALWAYS, *operation.errors)):
        failed = {"description": STATUSES[status], "content": {JSON: {"schema": refs[operation.says.kind]}}}
        for code in (None, QUOTA) if status == 429 else (None,):
            responses.setdefault(str(operation.says.status(status, code)), failed)
    found: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        bodies = {JSON: {"schema": refs[operation.body]}} | ({operation.raw: {}} if operation.raw else {})
        found["requestBody"] = {"required": True, "content": bodies}
    if operation.form is not None:
        found["requestBody"] = {"required": True, "content": {FORM: {"schema": refs[operation.form]}}}
    if parameters := [*_in_path(operation.where), *_in_query(operation.query)]:
        found["parameters"] = parameters
    return found


def _in_path(where: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", where):
        schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(kind: type[Query] | None) -> Iterator[dict[str, Any]]:
    schema = kind.model_json_schema() if kind else {}
    for name, field in schema.get("properties", {}).items():
        yield {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}


def _content(kind: Any, refs: dict[Any, Any]) -> dict[str, Any]:
    return {"type": "string"} if kind is None else dict(refs[kind])


# ── the page ──


@cache
def page(surfaces: Surfaces, operations: Operations) -> bytes:
    """The description as an HTML page."""
    found = described(surfaces, operations)
    document = _document(found)
    parts = [part for operation in found for part in _section(operation, document)]
    return (_HEAD + "\n".join(parts) + "</body></html>").encode()


_HEAD = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Octavo {__version__}</title><style>
body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
code, pre {{ font: 14px/1.4 monospace }} pre {{ overflow: auto; background: #f4f4f4; padding: .5rem }}
table {{ border-collapse: collapse; width: 100% }} td {{ border-top: 1px solid #ddd; padding: .2rem .5rem }}
</style></head><body><h1>Octavo {__version__}</h1>
<p>OpenAI's API with vLLM's extensions. The same as data: <a href="openapi.json">openapi.json</a>.</p>
"""


def _section(operation: Described, document: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{operation.method.upper()} {escape(operation.where)}</code></h2>"
    yield f"<p>{escape(operation.summary)}.</p>"
    shown = document["paths"][operation.where][operation.method]
    if operation.body is not None:
        schema = _resolved(shown["requestBody"]["content"][JSON]["schema"], document)
        yield "<details><summary>Body</summary><table>"
        yield from (_row(name, field, schema) for name, field in schema["properties"].items())
        yield "</table></details>"
    for name, content in shown["responses"]["200"].get("content", {}).items():
        text = json.dumps(_resolved(content["schema"], document), indent=2)
        yield f"<details><summary>200, {name}</summary><pre>{escape(text)}</pre></details>"
    errors = "".join(
        f"<tr><td>{status}</td><td>{escape(answer['description'])}</td></tr>"
        for status, answer in shown["responses"].items()
        if status != "200"
    )
    yield f"<details><summary>Other answers</summary><table>{errors}</table></details>"


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    found: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]] if reference else schema
    return found


def _row(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    required = ", required" if name in schema.get("required", ()) else ""
    kind = escape(_kind(field)) + required
    return f"<tr><td><code>{name}</code></td><td>{kind}</td><td>{escape(str(field.get('description', '')))}</td></tr>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
