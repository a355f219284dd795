"""The door over a scripted model: what comes in, and what answers tell. No Ray, no sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any

import httpx
import openai
import pytest

from octavo.cost_model import NO_COST
from octavo.engine.load import Counters
from octavo.engine.stats import EngineStats
from octavo.load import ShardState
from octavo.request import Placement
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.quotas import Quotas
from octavo_serve.api.service import Service
from octavo_serve.api.tenants import Tenant
from octavo_serve.http.app import http_app
from octavo_serve.http.door import host_name

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
CHAT = "/v1/chat/completions"
PAGE = "https://app.example.com"
ASK_FOR_POST = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "x-stainless-os, content-type",
}
Send = Callable[..., httpx.Response]


def keys(**holders: Caller) -> Keys:
    """Keys with the texts sk-NAME."""
    return Keys(KnownKey(caller, sha256(f"sk-{name}".encode()).digest()) for name, caller in holders.items())


TWO = keys(alice=Caller("alice"), bob=Caller("bob", operator=True))


@pytest.fixture
def access() -> Access:
    return Access()


@pytest.fixture
def send(service: Service, backend: Any, access: Access) -> Send:
    """Send one request to the application, in an event loop of its own."""

    async def run(method: str, path: str, **sent: Any) -> httpx.Response:
        transport = httpx.ASGITransport(http_app(service, backend, access), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
            return await http.request(method, path, **sent)

    return lambda method, path, **sent: asyncio.run(run(method, path, **sent))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- keys ---------------------------------------------------------------------------------------------------------


def test_whose_turn_a_grammar_takes_follows_from_the_key(send: Send, access: Access, client: Any) -> None:
    access.rules = Rules(keys=TWO)
    send("POST", CHAT, json=HELLO, headers=bearer("sk-alice"))
    access.rules = Rules()
    send("POST", CHAT, json=HELLO, headers={"x-octavo-address": "192.0.2.1"})
    assert [request.asker for request in client.opened] == ["alice", "192.0.2.1"]


REFUSED: list[Any] = [
    {},
    bearer("sk-eve"),
    bearer(""),
    bearer("sk-alic"),
    bearer("sk-alice2"),
    bearer("sk-" + "x" * 60_000),
    {"Authorization": b"Bearer sk-\xc3\xa4\xff"},
    {"Authorization": "sk-alice"},
    {"Authorization": "Basic sk-alice"},
    {"x-api-key": "Bearer sk-alice"},
    {"Cookie": "api_key=sk-alice"},
    [("Authorization", "Bearer sk-alice"), ("Authorization", "Bearer sk-eve")],
    [("Authorization", "Bearer sk-eve"), ("Authorization", "Bearer sk-alice")],
    [("x-api-key", "sk-alice"), ("x-api-key", "sk-alice")],
]


@pytest.mark.parametrize("headers", REFUSED)
def test_without_a_key_nothing_is_answered(send: Send, access: Access, client: Any, headers: Any) -> None:
    access.rules = Rules(TWO)
    answer = send("POST", CHAT, json=HELLO, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert "sk-" not in error["message"]
    assert client.opened == []


@pytest.mark.parametrize(
    "headers",
    [
        bearer("sk-alice"),
        {"Authorization": "bearer  sk-alice "},
        {"x-api-key": "sk-alice"},
        {"x-api-key": "sk-alice", "Authorization": "Bearer unused"},
        {"x-api-key": "unused", "Authorization": "Bearer sk-alice"},
    ],
)
def test_a_key_opens(send: Send, access: Access, headers: dict[str, str]) -> None:
    access.rules = Rules(TWO)
    assert send("POST", CHAT, json=HELLO, headers=headers).status_code == 200


@pytest.mark.parametrize("path", [
    "/metrics", "/v1/models", "/v1/models/tiny", "/docs", "/openapi.json", "/ping", "/version", "/pages", "/nowhere",
    "/health/", "http://localhost:8000//health", "/health/x", "/v1/%2e%2e/health", "/HEALTH",
    "/v1/models?api_key=sk-alice",
])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
def test_everything_but_health_and_pages_is_guarded(send: Send, access: Access, method: str, path: str) -> None:
    access.rules = Rules(TWO)
    assert send(method, path).status_code == 401


def test_health_needs_no_key_and_says_no_more_than_a_load_balancer_needs(send: Send, access: Access) -> None:
    access.rules = Rules(TWO, disclose=False)
    for headers in ({}, bearer("sk-eve"), bearer("sk-alice")):
        answer = send("GET", "/health", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert send("GET", "/health", headers=bearer("sk-bob")).json()["models"]["tiny"]["status"] == "ready"


def test_no_websocket_opens(service: Service, backend: Any, access: Access) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "query_string": b"", "subprotocols": []}
    asyncio.run(http_app(service, backend, access)(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_new_rules_hold_at_once(send: Send, access: Access) -> None:
    assert send("POST", CHAT, json=HELLO).status_code == 200
    access.rules = Rules(TWO)
    assert send("POST", CHAT, json=HELLO).status_code == 401
    assert send("POST", CHAT, json=HELLO, headers=bearer("sk-alice")).status_code == 200
    access.rules = Rules(keys(carol=Caller("carol")))
    assert send("POST", CHAT, json=HELLO, headers=bearer("sk-alice")).status_code == 401


def test_openais_client_sees_an_authentication_error(service: Service, backend: Any, access: Access) -> None:
    access.rules = Rules(TWO)

    async def ask(key: str) -> Any:
        transport = httpx.ASGITransport(http_app(service, backend, access))
        async with httpx.AsyncClient(transport=transport) as http:
            sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=http, max_retries=0)
            return await sdk.chat.completions.create(**HELLO)

    assert asyncio.run(ask("sk-alice")).choices[0].message.content == "Paris."
    with pytest.raises(openai.AuthenticationError) as caught:
        asyncio.run(ask("sk-eve"))
    assert caught.value.code == "invalid_api_key"


def test_the_name_is_in_the_metrics_and_the_log_and_the_key_is_not(
    send: Send, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    access.rules = Rules(TWO)
    with caplog.at_level(logging.INFO, "ray.serve"):
        send("POST", CHAT, json=HELLO, headers=bearer("sk-alice"))
        send("POST", CHAT, json=HELLO, headers=bearer("sk-eve"))
    assert [record.getMessage() for record in caplog.records] == [f"POST {CHAT!r} by the key alice"]
    metrics = send("GET", "/metrics", headers=bearer("sk-bob")).text
    assert 'octavo_key_requests_total{key="alice"} 1.0' in metrics
    assert 'octavo_request_errors_total{code="invalid_api_key",status="401"} 1.0' in metrics
    assert "sk-" not in caplog.text + metrics


# ---- what a key's requests may -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_keys_prompts_have_a_cache_namespace_of_their_own(
    send: Send, access: Access, client: Any, stream: bool
) -> None:
    def salt(key: str, **more: object) -> str:
        body = {**HELLO, "stream": stream, **more}
        assert send("POST", CHAT, json=body, headers=bearer(key)).status_code == 200
        return str(client.opened[-1].cache_salt)

    access.rules = Rules(TWO)
    assert (salt("sk-alice"), salt("sk-bob", cache_salt="x")) == ("", "x")
    access.rules = Rules(TWO, isolate_cache=True)
    salts = [salt("sk-alice"), salt("sk-bob"), salt("sk-alice", cache_salt="x"), salt("sk-bob", cache_salt="x")]
    assert len(set(salts)) == 4
    assert salt("sk-alice") == salts[0]
    assert salt("sk-bob", cache_salt=salts[0]) not in salts


def test_a_priority_is_refused_or_clamped(send: Send, access: Access, client: Any) -> None:
    answer = send("POST", CHAT, json=HELLO | {"priority": -100})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "priority")
    access.rules = Rules(priorities=(0, 10))
    send("POST", CHAT, json=HELLO | {"priority": -100})
    send("POST", "/v1/completions", json={"prompt": "Hi", "priority": 4})
    assert [request.priority for request in client.opened] == [0, 4]


# ---- what answers tell ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "tells"), [("sk-alice", False), ("sk-bob", True)])
def test_cached_tokens_and_shards_are_told_to_operators_alone(
    send: Send, access: Access, client: Any, backend: Any, key: str, tells: bool
) -> None:
    client.cached_tokens, client.placed = 16, Placement("7", "shard#7", "prefix", 16, 0.1)
    access.rules = Rules(TWO, disclose=False)
    details = {"cached_tokens": 16} if tells else None
    for path, body in ((CHAT, HELLO), ("/v1/completions", {"prompt": "Hello"})):
        answer = send("POST", path, json=body, headers=bearer(key))
        assert answer.json()["usage"]["prompt_tokens_details"] == details
        assert ("x-octavo-shard" in answer.headers) == tells
        options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        answer = send("POST", path, json=body | options, headers=bearer(key))
        assert ("x-octavo-route-reason" in answer.headers) == tells
        assert ('"cached_tokens":16' in answer.text) == tells
        usages = [json.loads(event[6:])["usage"] for event in answer.text.split("\n\n")[:-2]]
        assert len(usages) > 2
        assert usages[-1]["prompt_tokens_details"] == details
    backend.stats = {"tiny": [("app#shard#7", _stats())]}
    metrics = send("GET", "/metrics", headers=bearer(key)).text
    assert ("shard#7" in metrics, "vllm:prefix_cache_hits" in metrics) == (tells, tells)
    assert 'vllm:num_requests_running{engine="' in metrics


def _stats() -> EngineStats:
    numbers: Any = dict.fromkeys(ShardState.__dataclass_fields__, 1)
    state = ShardState(**numbers | {"cost": NO_COST})
    return EngineStats(state=state, counters=Counters(), blocks_cached=1, filled_slots=1, generation_tokens=1, steps=1)


def test_why_a_model_does_not_answer_is_told_to_operators_alone(send: Send, access: Access, service: Service) -> None:
    tiny = service.models.entries["tiny"]
    tiny.update(shards=0, shard_error="no file /home/me/model.gguf")
    access.rules = Rules(TWO, disclose=False)
    service.models.explain = False
    told = [
        "/home/me" in send("GET", path, headers=bearer(key)).text
        for key in ("sk-alice", "sk-bob")
        for path in ("/v1/models", "/v1/models/tiny", "/health")
    ]
    assert told == [False] * 3 + [True] * 3
    answer = send("POST", CHAT, json=HELLO, headers=bearer("sk-alice"))
    assert (answer.status_code, "/home/me" in answer.text) == (503, False)


# ---- hosts ---------------------------------------------------------------------------------------------------------

LOCAL = [
    "localhost",
    "localhost:8000",
    "LOCALHOST.:1",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.1.2.3:1",
    "[::1]",
    "[::1]:8000",
]
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.5:8000", "0.0.0.0",
    "", "localhost@evil.example", "evil.example#localhost", "localhost:x", "[::2]", "[evil.example]", "local\u00dfhost",
    "localhost, evil.example", "x" * 70_000,
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_loopback_has_these_names(send: Send, access: Access, host: str) -> None:
    access.rules = Rules(hosts=frozenset())
    assert send("GET", "/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_another_name_is_refused(send: Send, access: Access, host: str, path: str) -> None:
    access.rules = Rules(hosts=frozenset({"octavo.example"}))
    answer = send("GET", path, headers={"Host": host.encode("utf-8")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_names_of_the_config_are_let_in_and_two_names_never(send: Send, access: Access) -> None:
    access.rules = Rules(hosts=frozenset({"octavo.example", "fd00::7"}))
    for host in ("octavo.example", "Octavo.Example.:443", "[fd00::7]:8000"):
        assert send("GET", "/v1/models", headers={"Host": host}).status_code == 200
    two = [("Host", "localhost"), ("Host", "evil.example")]
    assert send("GET", "/v1/models", headers=two).status_code == 403
    access.rules = Rules()
    assert send("GET", "/v1/models", headers={"Host": "evil.example"}).status_code == 200


def test_host_names() -> None:
    assert host_name(b"[FD00::1]:80") == "fd00::1"
    assert host_name(b"A.b.") == "a.b"
    assert host_name(b"a b") is None


# ---- quotas --------------------------------------------------------------------------------------------------------


def limited(**quotas: Any) -> Rules:
    """Alice's tenant has these; bob's has none."""
    return Rules(
        keys(
            alice=Caller("alice", tenant=Tenant("acme", 2.0, cache_share=0.5, **quotas)),
            bob=Caller("bob", operator=True),
        )
    )


@pytest.fixture
def now(service: Service) -> list[float]:
    """What the clock of quotas says, alone in a list."""
    found = [1000.0]
    service.telemetry.ledger.quotas = Quotas(lambda: found[0])
    return found


BODIES: list[Any] = [
    (CHAT, HELLO | {"max_tokens": 3}, ("error", "code"), "rate_limit_exceeded"),
    ("/v1/completions", {"prompt": "Hello", "max_tokens": 3}, ("error", "type"), "rate_limit_error"),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 16}, ("error", "code"), "rate_limit_exceeded"),
    ("/v1/messages", HELLO | {"max_tokens": 3}, ("error", "type"), "rate_limit_error"),
    ("/generate", {"inputs": "Hello"}, ("error_type",), "overloaded"),
    ("/v2/models/tiny/generate", {"text_input": "Hello"}, ("error",), "the tenant 'acme' may use 1 requests"),
]


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "at", "said"), BODIES)
def test_a_quota_is_refused_in_the_protocols_own_words(
    send: Send, access: Access, client: Any, path: str, body: Any, at: Any, said: str, stream: bool
) -> None:
    access.rules = limited(requests_per_minute=1)
    asked = body | ({"stream": True} if stream and "/v" in path and "v2" not in path else {})
    first, second = (send("POST", path, json=asked, headers=bearer("sk-alice")) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 429), first.text
    assert (second.headers["retry-after"], second.headers["retry-after-ms"]) == ("61", "60063")
    found = second.json()
    for name in at:
        found = found[name]
    assert found.startswith(said)
    assert send("POST", path, json=asked, headers=bearer("sk-bob")).status_code == 200
    found = {(request.tenant, request.weight, request.cache_share) for request in client.opened}
    assert found == {("acme", 2.0, 0.5), ("", 1.0, None)}


def left(answer: httpx.Response, form: str) -> list[str]:
    kinds = ("limit", "remaining", "reset")
    return [answer.headers[form.format(kind, what)] for what in ("requests", "tokens") for kind in kinds]


def test_answers_and_refusals_say_what_is_left(send: Send, access: Access, now: list[float]) -> None:
    access.rules = limited(requests_per_minute=9, tokens_per_minute=300)
    asked = {"model": "tiny", "prompt": [5] * 20, "max_tokens": 80}
    answer = send("POST", "/v1/completions", json=asked, headers=bearer("sk-alice"))
    used = answer.json()["usage"]["total_tokens"]
    assert used < 30
    requests, tokens = left(answer, "x-ratelimit-{0}-{1}")[:3], left(answer, "x-ratelimit-{0}-{1}")[3:]
    assert (requests[:2], tokens[:2]) == (["9", "8"], ["300", str(300 - used)])
    assert requests[2] == tokens[2] == "60.062s"
    now[0] += 30
    streamed = send("POST", "/v1/completions", json=asked | {"stream": True}, headers=bearer("sk-alice"))
    assert left(streamed, "x-ratelimit-{0}-{1}")[4] == str(300 - used - 100), "the answer has just begun"
    assert left(streamed, "x-ratelimit-{0}-{1}")[5] == "60.062s", "until the last of it is back"
    refused = send("POST", "/v1/completions", json=asked | {"n": 4}, headers=bearer("sk-alice"))
    assert refused.status_code == 400
    assert "20 tokens and the answer may have 320" in refused.json()["error"]["message"]
    refused = send("POST", "/v1/completions", json=asked | {"n": 3}, headers=bearer("sk-alice"))
    assert (refused.status_code, left(refused, "x-ratelimit-{0}-{1}")[1]) == (429, "7")
    said = left(send("POST", "/v1/messages", json={}, headers={"x-api-key": "sk-alice"}), "anthropic-ratelimit-{1}-{0}")
    assert (said[:2], said[3:5]) == (["9", "7"], ["300", str(300 - 2 * used)])
    datetime.fromisoformat(said[2])
    assert not [name for name in send("POST", CHAT, json=HELLO, headers=bearer("sk-bob")).headers if "limit" in name]


def test_a_client_that_leaves_gives_its_place_and_the_rest_of_its_tokens_back(
    service: Service, backend: Any, access: Access, client: Any
) -> None:
    access.rules = limited(max_concurrent=1, tokens_per_minute=1000)
    client.texts = ["one two three four five six seven eight nine ten"]
    quotas, tenant = service.telemetry.ledger.quotas, Tenant("acme", tokens_per_minute=1000)
    body = json.dumps({"prompt": [5] * 20, "max_tokens": 100, "stream": True}).encode()
    headers = [(b"x-api-key", b"sk-alice")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 2:
            raise OSError

    for _ in range(2):
        sent.clear()
        with pytest.raises(OSError):  # noqa: PT011 - the one above
            asyncio.run(http_app(service, backend, access)(scope, receive, send))
    used = service.telemetry.ledger.usage["acme", "tiny"]
    assert (used.requests, used.prompt_tokens) == (2, 40)
    assert 0 < used.completion_tokens < 20
    assert quotas.standing(tenant)[0].remaining == 1000 - 40 - used.completion_tokens


def test_openais_client_comes_again_when_it_is_told(
    service: Service, backend: Any, access: Access, now: list[float]
) -> None:
    access.rules = limited(requests_per_minute=1)
    told: list[float] = []

    async def waits(answer: httpx.Response) -> None:
        if answer.status_code == 429:
            told.append(float(answer.headers["retry-after-ms"]) / 1000)
            now[0] += told[-1]

    async def ask(retries: int) -> Any:
        transport = httpx.ASGITransport(http_app(service, backend, access))
        async with httpx.AsyncClient(transport=transport, event_hooks={"response": [waits]}) as http:
            sdk = openai.AsyncOpenAI(
                base_url="http://localhost/v1", api_key="sk-alice", http_client=http, max_retries=retries
            )
            return await sdk.chat.completions.with_raw_response.create(**HELLO)

    assert asyncio.run(ask(0)).headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as caught:
        asyncio.run(ask(0))
    assert (caught.value.code, told) == ("rate_limit_exceeded", [60.063])
    asyncio.run(ask(0))
    now[0] += 59.9
    begun = time.monotonic()
    assert asyncio.run(ask(1)).retries_taken == 1
    assert time.monotonic() - begun >= told[-1] > 0.1


# ---- web pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
@pytest.mark.parametrize("mark", [{"Origin": PAGE}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_web_page_must_say_json(send: Send, client: Any, kind: str, mark: dict[str, str]) -> None:
    body = json.dumps(HELLO).encode()
    typed = {"Content-Type": kind} if kind else {}
    answer = send("POST", CHAT, content=body, headers=typed | mark)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "content_type_not_json")
    assert client.opened == []
    assert send("POST", CHAT, content=body, headers=typed).status_code == 200  # `curl -d` says a form, or nothing


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"])
def test_a_web_page_that_says_json_is_answered(send: Send, kind: str) -> None:
    headers = {"Origin": PAGE, "Content-Type": kind}
    assert send("POST", CHAT, content=json.dumps(HELLO), headers=headers).status_code == 200


def test_a_preflight_of_no_known_origin_is_refused_with_a_sentence(send: Send, access: Access) -> None:
    for origins in ((), ("https://other.example",)):
        access.rules = Rules(origins=origins)
        answer = send("OPTIONS", CHAT, headers={"Origin": PAGE, **ASK_FOR_POST})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "cors_origins" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers
        answer = send("POST", CHAT, json=HELLO, headers={"Origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("origins", "said"), [((PAGE,), PAGE), (("*",), "*")])
def test_pages_of_the_config_may_ask_and_read_errors_too(
    send: Send, access: Access, client: Any, origins: tuple[str, ...], said: str
) -> None:
    access.rules = Rules(TWO, origins=origins)
    answer = send("OPTIONS", CHAT, headers={"Origin": PAGE, **ASK_FOR_POST})  # without a key: browsers send none
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, said)
    assert "POST" in answer.headers["access-control-allow-methods"]
    private = send(
        "OPTIONS", CHAT, headers={"Origin": PAGE, "Access-Control-Request-Private-Network": "true", **ASK_FOR_POST}
    )
    assert private.headers["access-control-allow-private-network"] == "true"
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    page = {"Origin": PAGE, **bearer("sk-alice")}
    client.error = RuntimeError("a secret")
    answers = [
        send("POST", CHAT, json=HELLO, headers={"Origin": PAGE}),
        send("POST", CHAT, json={}, headers=page),
        send("POST", CHAT, content=b"{}", headers=page | {"Content-Type": "text/plain"}),
        send("POST", CHAT, json=HELLO, headers=page),
        send("GET", "/nowhere", headers=page),
    ]
    client.error = None
    answers += [send("POST", CHAT, json=HELLO | {"stream": stream}, headers=page) for stream in (False, True)]
    assert [answer.status_code for answer in answers] == [401, 400, 415, 500, 404, 200, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == said
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-octavo-shard", "retry-after", "retry-after-ms"} <= set(exposed)
    assert answers[-1].text.endswith("data: [DONE]\n\n")


def test_a_plain_options_is_no_preflight(send: Send, access: Access) -> None:
    access.rules = Rules(origins=("*",))
    assert send("OPTIONS", CHAT).status_code == 405
    assert send("OPTIONS", CHAT, headers={"Origin": PAGE}).status_code == 405


def test_a_client_that_leaves_at_the_door_leaves_nothing(service: Service, backend: Any, access: Access) -> None:
    access.rules = Rules(TWO)

    async def receive() -> Any:
        raise AssertionError("the body of a refused request is not read")

    async def send(message: Any) -> None:
        raise OSError

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b"", "root_path": ""}
    with contextlib.suppress(OSError):
        asyncio.run(http_app(service, backend, access)(scope, receive, send))
