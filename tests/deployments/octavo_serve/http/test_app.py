"""The HTTP surface over a scripted model: bytes of a stream, statuses, error bodies, limits. No Ray, no sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from octavo.errors import DeadlineMissed, EngineDead, OctavoError, Overloaded
from octavo.request import Placement
from octavo_serve.api.bounds import Limits
from octavo_serve.api.exposition import render
from octavo_serve.api.registry import ModelEntry, choose
from octavo_serve.api.service import Service
from octavo_serve.http.app import http_app
from octavo_serve.surfaces.chat.schemas import ChatChunk, ChatCompletion
from octavo_serve.surfaces.completions.schemas import Completion

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
Send = Callable[..., httpx.Response]


@pytest.fixture
def send(service: Service, backend: Any) -> Send:
    """Send one request to the application, in an event loop of its own."""

    async def run(method: str, path: str, **sent: Any) -> httpx.Response:
        transport = httpx.ASGITransport(http_app(service, backend), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **sent)

    return lambda method, path, **sent: asyncio.run(run(method, path, **sent))


def test_a_stream_is_server_sent_events(send: Send) -> None:
    answer = send("POST", "/v1/chat/completions", json=HELLO | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Paris."


@pytest.mark.parametrize(("n", "tokens", "bodies"), [(1, 1, 1), (4, 1, 1), (1, 2, 2), (4, 2, 2)])
def test_what_has_come_is_one_message_the_end_with_it(
    service: Service, backend: Any, n: int, tokens: int, bodies: int
) -> None:
    body = json.dumps(HELLO | {"stream": True, "n": n, "max_tokens": tokens}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(http_app(service, backend)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * bodies
    assert sent[-1]["body"].endswith(b"data: [DONE]\n\n")
    assert [message["more_body"] for message in sent[1:]] == [True] * (bodies - 1) + [False]


def test_an_error_after_the_first_byte_is_an_event(send: Send, client: Any) -> None:
    client.late_error, client.fail_after = OctavoError("the token was not a number"), 1
    answer = send("POST", "/v1/chat/completions", json=HELLO | {"stream": True})
    assert answer.status_code == 200
    *_, error, done, _ = answer.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "the token was not a number"
    assert done == "data: [DONE]"
    assert 'octavo_request_errors_total{code="",status="500"} 1.0' in send("GET", "/metrics").text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (Overloaded("4096 requests are waiting", 2.3), 429, {"Retry-After": "3"}),
        (EngineDead("gone"), 503, {}),
        (OctavoError("odd"), 500, {}),
        (RuntimeError("a secret"), 500, {}),
    ],
)
def test_an_error_before_the_first_byte_is_a_status(
    send: Send, client: Any, stream: bool, error: Exception, status: int, headers: dict[str, str]
) -> None:
    client.error = error
    answer = send("POST", "/v1/chat/completions", json=HELLO | {"stream": stream})
    assert answer.status_code == status
    assert headers.items() <= {"Retry-After": answer.headers.get("Retry-After")}.items()
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in answer.text
    assert re.search(rf'octavo_request_errors_total{{.*status="{status}"}} 1\.0', send("GET", "/metrics").text)


def test_bodies_have_a_limit(send: Send) -> None:
    answer = send("POST", "/v1/completions", content=b"x" * 30_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    async def chunks() -> Any:
        for _ in range(30):
            yield b"x" * 1000

    answer = send("POST", "/v1/completions", content=chunks())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_models(send: Send) -> None:
    assert [model["id"] for model in send("GET", "/v1/models").json()["data"]] == ["tiny"]
    assert send("GET", "/v1/models/tiny").json()["max_model_len"] == 256
    answer = send("GET", "/v1/models/huge/model")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_unknown_paths_and_methods_have_openais_body(send: Send) -> None:
    assert "Not Found" in send("GET", "/props").json()["error"]["message"]
    answer = send("GET", "/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_tokenize_and_detokenize(send: Send) -> None:
    tokens = send("POST", "/tokenize", json={"prompt": "Hello there"}).json()["tokens"]
    assert send("POST", "/detokenize", json={"tokens": tokens}).json() == {"prompt": "Hello there"}


def test_health_tells_the_truth_about_each_model(send: Send, service: Service) -> None:
    tiny = service.models.entries["tiny"]
    broken = service.models.entries["broken"] = ModelEntry("broken", 0, tiny.client, shard_error="out of luck")
    answer = send("GET", "/health")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "status": "degraded",
            "shards": {"tiny": 1, "broken": 0},
            "models": {
                "tiny": {"status": "ready", "reason": None},
                "broken": {"status": "failed", "reason": "out of luck"},
            },
        },
    )
    tiny.update(shards=0, note="its shards are starting")
    answer = send("GET", "/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json()["models"]["tiny"] == {"status": "loading", "reason": "its shards are starting"}
    tiny.update(shards=1)
    broken.update(shards=1, info=tiny.info, tokenizer=tiny.tokenizer)
    assert send("GET", "/health").json()["status"] == "ok"


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_cannot_answer_is_a_503_with_the_reason(send: Send, service: Service, stream: bool) -> None:
    tiny = service.models.entries["tiny"]
    tiny.update(shards=0, note="its shards are starting")
    answer = send("POST", "/v1/chat/completions", json=HELLO | {"stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["message"] == (
        "model 'tiny' is still loading (its shards are starting); try again later"
    )
    tiny.update(shard_error="no such file")
    answer = send("POST", "/v1/chat/completions", json=HELLO | {"stream": stream})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, False)
    assert answer.json()["error"]["message"] == "model 'tiny' has failed: no such file"
    assert answer.json()["error"]["code"] == "model_not_ready"


def test_a_session_header_or_the_user_decides_which_model_of_an_alias_answers(send: Send, service: Service) -> None:
    tiny = service.models.entries["tiny"]
    service.models.entries["other"] = ModelEntry("other", 0, tiny.client, False, tiny.tokenizer, tiny.info, 1)
    service.models.aliases["either"] = {"tiny": 0.5, "other": 0.5}

    def answered(headers: dict[str, str], **body: str) -> str:
        asked = HELLO | {"model": "either"} | body
        return str(send("POST", "/v1/chat/completions", json=asked, headers=headers).json()["model"])

    for i in range(8):
        want = choose({"tiny": 0.5, "other": 0.5}, f"s{i}")
        assert {answered({"x-session-id": f"s{i}"}), answered({"x-session-affinity": f"s{i}"})} == {want}
        assert answered({}, user=f"s{i}") == want
        assert answered({"x-session-id": f"s{i}"}, user="somebody") == want
    assert {answered({}) for _ in range(40)} == {"tiny", "other"}


def test_metrics_have_vllms_names(send: Send, backend: Any) -> None:
    send("POST", "/v1/chat/completions", json=HELLO)
    lines = send("GET", "/metrics").text.splitlines()
    assert 'vllm:request_success_total{finished_reason="stop",model_name="tiny"} 1.0' in lines
    assert 'vllm:time_to_first_token_seconds_count{model_name="tiny"} 1.0' in lines
    assert 'vllm:e2e_request_latency_seconds_count{model_name="tiny"} 1.0' in lines


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_response_says_where_it_was_made_and_why(
    send: Send, client: Any, service: Service, path: str, stream: bool
) -> None:
    client.placed = Placement("ticket", "shard1", "prefix", cached_tokens=48, first_token=0.1)
    client.cached_tokens = 32
    asked = HELLO if "chat" in path else {"prompt": "Hello"}
    answer = send("POST", path, json=asked | {"stream": stream})
    assert answer.headers["x-octavo-shard"] == "shard1"
    assert answer.headers["x-octavo-route-reason"] == "prefix"
    assert answer.headers["x-octavo-cached-tokens"] == "predicted=48, actual=32"
    metrics = asyncio.run(render(service.telemetry, {})).decode()
    assert 'octavo_router_cached_tokens_error_bucket{le="0.0",model_name="tiny"} 0.0' in metrics
    assert 'octavo_router_cached_tokens_error_bucket{le="16.0",model_name="tiny"} 1.0' in metrics
    assert 'octavo_router_first_token_error_seconds_count{model_name="tiny"} 1.0' in metrics


@pytest.mark.parametrize(
    ("headers", "user", "session"),
    [
        ({}, None, ""),
        ({}, "alice", "alice"),
        ({"x-session-id": "s"}, "alice", "s"),
        ({"x-session-id": "s", "x-session-affinity": "a"}, None, "a"),
    ],
)
def test_the_session_reaches_the_request(
    send: Send, client: Any, headers: dict[str, str], user: str | None, session: str
) -> None:
    send("POST", "/v1/chat/completions", json=HELLO | ({"user": user} if user else {}), headers=headers)
    (request,) = client.opened
    assert request.session == session


@pytest.mark.parametrize(
    ("headers", "field", "least", "most"),
    [({}, None, None, None), ({"x-request-deadline-ms": "5000"}, None, 4, 5), ({}, 5000, 4, 5),
     ({"x-request-deadline-ms": "2.5e4"}, 5000, 24, 25)],
)  # fmt: skip
def test_the_deadline_reaches_the_request_and_the_header_goes_before_the_field(
    send: Send, client: Any, headers: dict[str, str], field: float | None, least: float | None, most: float | None
) -> None:
    assert send("POST", "/v1/chat/completions", json=HELLO | {"deadline_ms": field}, headers=headers).status_code == 200
    (request,) = client.opened
    assert request.deadline is None if least is None else least < request.deadline <= most


@pytest.mark.parametrize("value", ["soon", "0", "-5", "nan", "1e12"])
def test_a_deadline_that_is_none_is_named(send: Send, value: str) -> None:
    for path, field in (("/v1/messages", {"max_tokens": 5}), ("/v1/chat/completions", {})):
        answer = send("POST", path, json=HELLO | field, headers={"x-request-deadline-ms": value})
        assert answer.status_code == 400
        assert "deadline" in answer.json()["error"]["message"]


def test_a_missed_deadline_says_when_to_come_again(send: Send, client: Any) -> None:
    client.full = DeadlineMissed("allow for 3 s", 1.5)
    answer = send("POST", "/v1/chat/completions", json=HELLO)
    assert (answer.status_code, answer.headers["retry-after-ms"]) == (429, "1500")
    assert answer.json()["error"]["code"] == "deadline_missed"


GETS = ["/version", "/ping", "/health", "/metrics", "/v1/models", "/v1/models/tiny", "/tokenizer_info", "/openapi.json",
        "/docs"]  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_is_there_where_get_is(send: Send, path: str) -> None:
    assert send("HEAD", path).status_code == send("GET", path).status_code == 200
    assert send("HEAD", path).headers.get("content-type") == send("GET", path).headers.get("content-type")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", [*GETS, "/v1/chat/completions", "/tokenize"])
def test_other_methods_are_refused_in_openais_form(send: Send, method: str, path: str) -> None:
    answer = send(method, path)
    assert answer.status_code == 405
    allowed = set(answer.headers["allow"].split(", "))
    assert (
        allowed == ({"POST"} if path in ("/v1/chat/completions", "/tokenize") else {"GET", "HEAD"}) or path == "/ping"
    )
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize("top_k", ["36893488147419103232", "-9223372036854775809", "1e40"])
def test_an_integer_beyond_64_bits_is_a_400(send: Send, service: Service, size: int, top_k: str) -> None:
    service.limits = Limits()
    body = f'{{"messages":[{{"role":"user","content":"{"a" * size}"}}],"top_k":{top_k}}}'
    answer = send("POST", "/v1/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_k")


def test_a_body_has_as_many_bytes_as_the_longest_context_needs(send: Send, service: Service) -> None:
    service.limits = Limits()
    assert service.bounds.num_bytes == 2 * 2**20 + 32 * 256
    answer = send("POST", "/v1/completions", content=b"x" * (service.bounds.num_bytes + 1))
    assert answer.status_code == 413
    answer = send("POST", "/v1/completions", json={"prompt": "word, " * 200_000})  # parsed beside the event loop
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    service.models.entries["tiny"].update(info=None)
    assert service.bounds.num_bytes == 2 * 2**20 + 32 * 2**17


def test_a_chunk_has_no_key_that_is_not_described(send: Send) -> None:
    asked = {"stream": True, "logprobs": True, "top_logprobs": 1, "return_token_ids": True, "n": 2}
    asked |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, body, kind in (
        ("/v1/chat/completions", HELLO | asked, ChatChunk),
        ("/v1/completions", {"prompt": ["a", "b"]} | asked | {"logprobs": 1}, Completion),
    ):
        body = {name: value for name, value in body.items() if name != "top_logprobs" or "chat" in path}
        *events, _, _ = send("POST", path, json=body).text.split("\n\n")
        for event in events:
            TypeAdapter(kind).validate_json(event.removeprefix("data: "), strict=True, extra="forbid")
        whole = send("POST", path, json=body | {"stream": False, "stream_options": None}).text
        answer = ChatCompletion if "chat" in path else Completion
        TypeAdapter(answer).validate_json(whole, strict=True, extra="forbid")
