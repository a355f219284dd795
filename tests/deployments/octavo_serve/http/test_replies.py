"""Failures as responses, and the headers that say where an answer was made."""

from __future__ import annotations

import json

from octavo.request import Placement
from octavo_serve.api.failures import Failure
from octavo_serve.api.pieces import Begun
from octavo_serve.http.replies import failure_reply, json_reply, routing_headers
from octavo_serve.surfaces.openai.errors import ERRORS


def placed(shard: str, reason: str, predicted: int) -> Placement:
    return Placement("ticket", shard, reason, cached_tokens=predicted, first_token=0.1)


def test_a_reply_is_compact_json() -> None:
    reply = json_reply({"a": "é", "b": None}, 201)
    assert (reply.status_code, reply.body) == (201, '{"a":"é","b":null}'.encode())
    assert reply.headers["content-type"] == "application/json"


def test_a_failure_has_its_status_its_headers_and_the_protocols_body() -> None:
    reply = failure_reply(Failure(429, "too much", headers={"Retry-After": "7"}), ERRORS)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert json.loads(bytes(reply.body))["error"]["message"] == "too much"


def test_prompts_of_one_request_share_the_headers() -> None:
    begun = [
        Begun(0, placed("a", "prefix", 48), 32),
        Begun(1, placed("b", "load", 0), 16),
        Begun(2, placed("a", "prefix", 16), 16),
        Begun(3, None, 99),  # without a router
    ]
    assert routing_headers(begun) == {
        "x-octavo-shard": "a, b",
        "x-octavo-route-reason": "prefix, load",
        "x-octavo-cached-tokens": "predicted=64, actual=64",
    }
    assert routing_headers(begun[3:]) == routing_headers([]) == {}
