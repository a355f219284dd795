"""OpenAI's decisions, over a model that has an opinion of every label."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, RateLimitError
from openai.lib.decisions_tool_runner import AsyncDecisionsToolRunner
from openai.types import Decision as TheirDecision

from octavo.errors import Overloaded, QuotaExceeded
from octavo_serve.api.access import Caller, Rules
from octavo_serve.api.service import Service
from octavo_serve.api.tenants import Tenant
from octavo_serve.http.app import http_app

POLITE = {"type": "predicate", "name": "polite", "instructions": "The customer is polite."}
KIND = {
    "type": "choice",
    "instructions": "What is it about?",
    "choices": [{"value": "billing", "description": "money"}, {"value": True}, {"value": "true"}],
}
URGENCY = {"type": "score", "name": "urgency", "instructions": "How urgent?", "levels": [{"label": x} for x in "abc"]}
MANY = {"type": "choice", "instructions": "Which?", "choices": [{"value": f"option {i}"} for i in range(255)]}


def test_three_kinds_of_questions_in_their_order(ask: Any, client: Any) -> None:
    told = ask.decisions(POLITE, KIND, URGENCY)
    read = TheirDecision.model_validate(told)
    assert [(answer.type, answer.name) for answer in read.answers] == [
        ("predicate", "polite"),
        ("choice", None),
        ("score", "urgency"),
    ]
    polite, kind, urgency = told["answers"]
    assert 0 < polite["probability"] < 1
    assert [entry["value"] for entry in kind["probabilities"]] == ["billing", True, "true"]
    assert math.fsum(entry["probability"] for entry in kind["probabilities"]) == pytest.approx(1)
    most = max(kind["probabilities"], key=lambda entry: entry["probability"])
    assert kind["choice"] is most["value"]
    assert [(entry["value"], entry["label"]) for entry in urgency["probabilities"]] == [(0, "a"), (1, "b"), (2, "c")]
    expected = sum(entry["value"] * entry["probability"] for entry in urgency["probabilities"])
    assert urgency["score"] == pytest.approx(expected)


def test_usage(ask: Any, client: Any) -> None:
    client.cached_tokens = 32
    told = ask.decisions(POLITE, KIND)["usage"]
    state, *others = client.opened
    tokens = len(state.prompt_token_ids)
    suffixes = sum(len(request.prompt_token_ids) - tokens for request in others)
    assert told == {
        "input_tokens": tokens + suffixes,
        "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": tokens // 16 * 16 - 32},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens + suffixes,
    }
    assert ask.decisions(POLITE)["usage"]["input_tokens_details"]["cached_tokens"] == 32  # no request for the state


def test_a_tenant_pays_for_the_state_once(ask: Any, client: Any, service: Service) -> None:
    client.cached_tokens, tenant = 32, Tenant("acme", 2.0, requests_per_minute=1)
    told = ask.decisions(POLITE, KIND, tenant=tenant)["usage"]
    assert {(one.tenant, one.weight) for one in client.opened} == {("acme", 2.0)}
    used = service.telemetry.ledger.usage["acme", "tiny"]
    assert (used.prompt_tokens, used.cached_tokens) == (told["input_tokens"], 32)
    with pytest.raises(QuotaExceeded):
        ask.decisions(POLITE, tenant=tenant)


def test_nothing_of_the_cache_is_told_to_who_may_not_know(ask: Any, client: Any) -> None:
    client.cached_tokens = 32
    hidden = Rules(isolate_cache=True, disclose=False)
    told = ask.decisions(POLITE, access=hidden)
    assert told["usage"]["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    salts = {request.cache_salt for request in client.opened}
    assert salts == {hidden.cache_salt(Caller(), "")}
    assert "cached_tokens" not in ask.system_one({"a": {"type": "noul", "instructions": "x"}}, rules=hidden)["usage"]


def test_explicit_caching_without_a_breakpoint_shares_nothing(ask: Any, client: Any) -> None:
    explicit = {"prompt_cache_options": {"mode": "explicit"}}
    for _ in range(2):
        ask.decisions(POLITE, KIND, **explicit)
    assert len({request.cache_salt for request in client.opened} - {""}) == 2
    del client.opened[:]
    text = {"type": "input_text", "text": "Hello", "prompt_cache_breakpoint": {"mode": "explicit"}}
    ask.decisions(POLITE, KIND, input=[{"role": "user", "content": [text]}], **explicit)
    assert {request.cache_salt for request in client.opened} == {""}


def test_the_sdk_asks_over_http(service: Service, backend: Any, client: Any) -> None:
    """Its own request body and its own reading of the answer, and of an error."""

    async def talk() -> tuple[Any, Any]:
        transport = httpx2.ASGITransport(http_app(service, backend))
        http = httpx2.AsyncClient(transport=transport)
        async with AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http, max_retries=0) as sdk:
            told = await sdk.decisions.create(model="tiny", input="Help! Now!", questions=[POLITE, KIND, URGENCY])
            with pytest.raises(BadRequestError) as refused:
                await sdk.decisions.create(model="tiny", input="Help!", questions=[])
            client.full = Overloaded("full", retry_after=2.0)
            with pytest.raises(RateLimitError) as busy:
                await sdk.decisions.create(model="tiny", input="Help!", questions=[POLITE])
            assert busy.value.response.headers["retry-after"] == "2"
            return told, refused.value

    told, refused = asyncio.run(talk())
    assert [answer.type for answer in told.answers] == ["predicate", "choice", "score"]
    assert told.model == "tiny"
    assert (refused.param, refused.status_code) == ("questions", 400)


def test_the_sdks_own_agent_loop_takes_the_answers(service: Service, backend: Any, client: Any) -> None:
    acted = []

    async def act() -> str:
        acted.append("refund")
        client.favourite = 1  # done
        return "done"

    async def observe() -> str:
        return "A refund is asked for."

    async def candidates(seen: Any) -> list[Any]:
        done = {"id": "done", "description": "Nothing is left to do.", "done": True}
        return [{"id": "refund", "description": "Pay it back.", "execute": act}, done]

    async def verify(seen: Any) -> bool:
        return bool(acted)

    async def run() -> Any:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(service, backend)))
        async with AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http, max_retries=0) as sdk:
            runner = AsyncDecisionsToolRunner(observe=observe, candidates=candidates, verify=verify)
            return await runner.run(sdk, {"model": "tiny", "input": "Help the customer."})

    client.favourite = 0  # the first option
    result = asyncio.run(run())
    assert (result["status"], result["completed_candidate_ids"]) == ("verified", ["refund"])
    assert result["decisions"][0].answers[0].choice == "refund"
