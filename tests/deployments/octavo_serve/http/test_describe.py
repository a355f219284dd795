"""The API's description is true: whatever fits it or does not, nothing fails and every answer has its schema."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from octavo.errors import OctavoError
from octavo_serve.api.bounds import Limits
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app
from octavo_serve.http.describe import Described, described, openapi, page
from octavo_serve.surfaces.served import OPERATIONS, SURFACES

DESCRIBED = described(SURFACES, OPERATIONS)
EXAMPLES = 10


@pytest.fixture
def api(service: Service, backend: Any) -> Any:
    service.limits = Limits()
    return schemathesis.openapi.from_asgi("/openapi.json", http_app(service, backend))


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", DESCRIBED, ids=lambda operation: f"{operation.method} {operation.where}")
def test_every_answer_is_as_described(api: Any, operation: Described, mode: GenerationMode) -> None:
    served = api[operation.where][operation.method.upper()]
    if mode is GenerationMode.NEGATIVE and operation.body is None and not operation.query:
        return  # nothing that could be wrong

    @given(case=served.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES if operation.body else 5, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny"
        # what fits the schema may still be refused: a prompt beyond the context, fields that contradict each other
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()


@pytest.mark.parametrize("where", [one.path for one in OPERATIONS if one.many])
def test_every_answer_about_many_texts_is_as_described(pooling: Service, pooler: Any, backend: Any, where: str) -> None:
    pooler.becomes("embed", "classify", labels=("best",), matryoshka=())
    served = schemathesis.openapi.from_asgi("/openapi.json", http_app(pooling, backend))[where]["POST"]
    answered = []

    @given(case=served.as_strategy(generation_mode=GenerationMode.POSITIVE))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        if "model" in case.body:
            case.body["model"] = "tiny"
        answered.append(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

    check()
    assert set(answered) <= {200, 400, 422}


@pytest.mark.parametrize("fail_after", [None, 1], ids=["whole", "with an error"])
@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}])
@pytest.mark.parametrize(
    ("where", "body"),
    [
        ("/v1/completions", {"prompt": "Hi", "logprobs": 2, "echo": True, "prompt_logprobs": 1}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 2},
        ),
    ],
)
def test_every_event_is_as_described(
    api: Any, client: Any, where: str, body: dict[str, Any], asked: dict[str, Any], fail_after: int | None
) -> None:
    client.fail_after, client.late_error = fail_after, OctavoError("the token was not a number")
    case = api[where]["POST"].Case(body=body | asked | {"stream": True, "return_token_ids": True})
    answer = case.call_and_validate()
    assert answer.text.endswith("data: [DONE]\n\n")
    assert ("not a number" in answer.text) == (fail_after is not None)


@pytest.mark.parametrize("fail_after", [None, 1], ids=["whole", "with an error"])
def test_every_event_of_messages_is_as_described(api: Any, client: Any, fail_after: int | None) -> None:
    client.fail_after, client.late_error = fail_after, OctavoError("the token was not a number")
    body = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answer = api["/v1/messages"]["POST"].Case(body=body).call_and_validate()
    assert ("event: error\n" in answer.text) == (fail_after is not None)


def test_every_route_is_described(service: Service, backend: Any) -> None:
    told = {(operation.method.upper(), operation.where) for operation in DESCRIBED}
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in http_app(service, backend).routes
        if route.include_in_schema  # files of pages are not: those are for people
        for method in route.methods - {"HEAD"}
    }
    assert told == served


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_loads_nothing_and_names_every_field() -> None:
    links = _Links()
    links.feed(page(SURFACES, OPERATIONS).decode())
    assert links.loaded == ["openapi.json"]
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    schemas = json.loads(openapi(SURFACES, OPERATIONS))["components"]["schemas"]
    for kind in ("ChatRequest", "CompletionRequest", "TokenizeRequest", "DetokenizeRequest", "MessagesRequest"):
        for name in schemas[kind]["properties"]:
            assert f"<code>{name}</code>" in page(SURFACES, OPERATIONS).decode()
