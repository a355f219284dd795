"""Whatever is wrong with a body, the sentence names fields of the protocol that was asked, in that protocol's body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter

from octavo.request import SamplingParams
from octavo_serve.api.access import Access
from octavo_serve.api.model import Defaults
from octavo_serve.http.app import http_app
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.messages.schemas import MessagesRequest
from octavo_serve.surfaces.responses.schemas import ResponsesRequest


class Posts:
    """Sends many bodies to one application of a real engine."""

    def __init__(self, service: Any, backend: Any) -> None:
        self._app = http_app(service, backend, Access())

    def __call__(self, path: str, *bodies: dict[str, Any]) -> list[httpx.Response]:
        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return [await http.post(path, json={"model": "tiny", **body}) for body in bodies]

        return asyncio.run(run())


@pytest.fixture
def posts(in_process: Any, backend: Any) -> Posts:
    in_process.service.models.entries["tiny"].update(defaults=Defaults(response_template="hermes"))
    return Posts(in_process.service, backend)


HELLO = [{"role": "user", "content": "Hello"}]
SURFACES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/messages": (MessagesRequest, {"max_tokens": 4, "messages": HELLO}),
    "/v1/responses": (ResponsesRequest, {"max_output_tokens": 4, "input": "Hello", "store": False}),
}
ODD: list[Any] = [-1, 10**7, 10**20, "", True, [""], ["x"] * 40, ["x" * 5000], {"type": "x"}]
MORE: dict[str, list[dict[str, Any]]] = {
    "/v1/messages": [
        {"messages": [*HELLO, {"role": "assistant", "content": "So"}]},
        {"tool_choice": {"type": "any"}},
        {"max_tokens": 500},
        {"thinking": {"type": "enabled", "budget_tokens": 10**9}},
    ],
    "/v1/responses": [
        {"input": [{"role": "tool", "content": "x"}]},
        {"tool_choice": "required"},
        {"max_output_tokens": 500},
        {"reasoning": {"max_tokens": -1}},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 30},
    ],
}


def _names(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for part in schema.values():
            yield from _names(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _names(part)


@pytest.mark.parametrize("path", SURFACES)
def test_no_sentence_names_a_field_of_another_protocol(path: str, posts: Posts) -> None:
    kind, body = SURFACES[path]
    own = set(_names(TypeAdapter(kind).json_schema()))
    foreign = ({field.name for field in fields(SamplingParams)} | set(ChatRequest.model_fields)) - own
    odd = [{name: value} for name in kind.model_fields for value in ODD if name != "model"]
    refused = 0
    bodies = [body | changed for changed in [*odd, *MORE[path]]]
    for changed, answer in zip(bodies, posts(path, *bodies), strict=True):
        assert answer.status_code < 500, (changed, answer.text)
        if answer.status_code == 200:
            continue
        refused += 1
        error = answer.json()["error"]
        said = re.sub("""'[^']*'|"[^"]*\"""", "", error["message"].partition(", got ")[0])
        named = {word for word in re.findall(r"\w+", said) if "_" in word} | {re.split(r"\W", said)[0]}
        assert not named & foreign, (changed, said)
        assert (error.get("param") or "").split(".")[0] not in foreign, (changed, error)
    assert refused > 100


TOOL: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "none"}}}}
INNER = "properties.a.items.type"
WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/chat/completions",
        {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOL}}},
        "response_format.json_schema.schema",
    ),
    ("/v1/completions", {"prompt": "x", "guided_json": TOOL}, "guided_json"),
    (
        "/v1/chat/completions",
        {
            "messages": HELLO,
            "tools": [
                {"type": "function", "function": {"name": "good", "strict": True}},
                {"type": "function", "function": {"name": "f", "strict": True, "parameters": TOOL}},
            ],
        },
        "tools.1.function.parameters",
    ),
    (
        "/v1/responses",
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": TOOL}}},
        "text.format.schema",
    ),
    (
        "/v1/responses",
        {"input": "x", "tools": [{"type": "function", "name": "f", "strict": True, "parameters": TOOL}]},
        "tools.0.parameters",
    ),
    (
        "/v1/messages",
        {"max_tokens": 9, "messages": HELLO, "output_config": {"format": {"type": "json_schema", "schema": TOOL}}},
        "output_config.format.schema",
    ),
    (
        "/v1/messages",
        {"max_tokens": 9, "messages": HELLO, "tools": [{"name": "f", "strict": True, "input_schema": TOOL}]},
        "tools.0.input_schema",
    ),
]


@pytest.mark.parametrize(("path", "body", "field"), WRONG, ids=[f"{path}-{field}" for path, _, field in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schemas_error_is_a_400_that_names_the_path_in_it(
    path: str, body: dict[str, Any], field: str, stream: bool, posts: Posts
) -> None:
    [answer] = posts(path, body | {"stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(f"{field}.{INNER}: ")
    if path != "/v1/messages":
        assert error["param"] == f"{field}.{INNER}"


def _tool(path: str) -> dict[str, Any]:
    if path.startswith("/v1/messages"):
        return {"name": "twice", "input_schema": {"type": "object"}}
    return {"type": "function", "name": "twice", "function": {"name": "twice"}}


@pytest.mark.parametrize("path", [*SURFACES, "/v1/chat/completions", "/tokenize", "/v1/messages/count_tokens"])
def test_two_tools_of_one_name_are_refused(path: str, posts: Posts) -> None:
    body = {} if path.startswith("/v1/r") else {"messages": HELLO}
    body |= {"input": "x"} if path == "/v1/responses" else {}
    body |= {"max_tokens": 9} if path == "/v1/messages" else {}
    [answer] = posts(path, body | {"tools": [_tool(path), _tool(path)]})
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert said == "tools holds two tools that are called 'twice': give each its own name"
