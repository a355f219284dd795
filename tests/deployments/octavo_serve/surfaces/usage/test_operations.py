"""GET /v1/usage over a scripted model: each sees its own, operators all."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import httpx
import pytest

from octavo.cost_model import Cost
from octavo_serve.api.access import Access, Caller, Keys, KnownKey, Rules
from octavo_serve.api.model import Price
from octavo_serve.api.service import Service
from octavo_serve.api.tenants import Tenant
from octavo_serve.http.app import http_app

HOLDERS = Caller("alice", tenant=Tenant("acme")), Caller("bob", tenant=Tenant("bob")), Caller("ops", operator=True)
KEYS = Keys([KnownKey(one, sha256(one.name.encode()).digest()) for one in HOLDERS])


class Server:
    def __init__(self, service: Service, backend: Any) -> None:
        self.access = Access(Rules(KEYS, disclose=False))
        self.app = http_app(service, backend, self.access)

    def __call__(self, method: str, path: str, key: str, **sent: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, headers={"x-api-key": key}, **sent)

        return asyncio.run(run())

    def usage(self, key: str, **query: Any) -> Any:
        return self("GET", "/v1/usage", key, params=query).json()["data"]


@pytest.fixture
def server(service: Service, backend: Any, client: Any) -> Server:
    tiny = service.models.entries["tiny"]
    tiny.price, tiny.cost = Price(1.0, 0.1, 2.0), lambda: Cost(0, 1e-3, 0, 0, 0)
    client.cached_tokens = 4
    service.telemetry.ledger._clock = lambda: 100 * 3600.0
    found = Server(service, backend)
    for key, prompts in (("alice", ["a b c d e f"]), ("bob", ["a b c d e f", "g h i j k l"])):
        body = {"prompt": prompts, "n": 2, "max_tokens": 2}
        assert found("POST", "/v1/completions", key, json=body).status_code == 200
    return found


def test_everybody_sees_his_own_and_operators_all(server: Server) -> None:
    (acme,) = server.usage("alice")
    assert (acme["tenant"], acme["model"], acme["requests"], acme["completion_tokens"]) == ("acme", "tiny", 1, 4)
    assert [one["tenant"] for one in server.usage("bob", tenant="bob")] == ["bob"]
    assert [one["tenant"] for one in server.usage("ops")] == ["acme", "bob"]
    assert [one["requests"] for one in server.usage("ops", tenant="bob")] == [1]
    assert server.usage("ops", tenant="nobody") == []
    refused = server("GET", "/v1/usage", "alice", params={"tenant": "bob"})
    assert (refused.status_code, "told to operators" in refused.json()["error"]["message"]) == (403, True)


def test_what_the_cache_says_of_others_is_told_where_it_may_be(server: Server) -> None:
    hidden = ("cached_tokens", "engine_seconds", "cost")
    (mine,), (told,) = server.usage("alice"), server.usage("ops", tenant="acme")
    assert [mine[name] for name in hidden] == [None, None, None]
    prompt = told["prompt_tokens"]
    assert told["cached_tokens"] == 4
    assert told["engine_seconds"] == pytest.approx((prompt - 4 + 4) * 1e-3)
    assert told["cost"] == pytest.approx((prompt - 4 + 0.4 + 8) / 1e6)
    server.access.rules = Rules(KEYS, isolate_cache=True, disclose=False)
    assert server.usage("alice") == [told]


def test_hour_by_hour(server: Server, service: Service) -> None:
    assert [one["start"] for one in server.usage("alice", hours=1)] == [360_000]
    service.telemetry.ledger._clock = lambda: 102.5 * 3600
    assert server.usage("alice", hours=2) == []
    assert [one["start"] for one in server.usage("alice", hours=3)] == [360_000]
    assert server("GET", "/v1/usage", "alice", params={"hours": 25}).status_code == 400


def test_metrics_of_tenants_are_for_operators(server: Server) -> None:
    name = 'octavo_tenant_requests_total{model_name="tiny",tenant="acme"} 1.0'
    assert name in server("GET", "/metrics", "ops").text
    server.access.rules = Rules(KEYS, disclose=True)
    assert "acme" not in server("GET", "/metrics", "alice").text


def test_a_server_without_keys_has_one_tenant(server: Server) -> None:
    server.access.rules = Rules()
    assert server("POST", "/v1/completions", "", json={"prompt": "a"}).status_code == 200
    assert [one["tenant"] for one in server.usage("")] == ["acme", "bob", ""]
    server.access.rules = Rules(disclose=False)
    assert [one["tenant"] for one in server.usage("")] == [""]
