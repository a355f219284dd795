"""Requests that are answered without a stream: their query parameters, and what access rules make of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from pydantic import Field

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.access import Caller, Rules
from octavo_serve.api.jobs import Asked
from octavo_serve.api.listing import CHUNK, Listing
from octavo_serve.api.operation import Call, Names, Operation, Query, answered, read_query
from octavo_serve.api.service import Service
from octavo_serve.api.tenants import Tenant
from octavo_serve.surfaces.openai.errors import ERRORS


class Page(Query):
    after: str | None = None
    limit: int = Field(default=20, ge=1, le=100)
    full: bool = False
    include: Names = Field(default_factory=list)


def test_texts_become_values() -> None:
    found = read_query(Page, {"limit": "7", "full": "true", "include": "a"})
    assert (found.after, found.limit, found.full, found.include) == (None, 7, True, ["a"])
    assert read_query(Page, {"include": ["a", "b"]}).include == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"full": "perhaps"}, "full"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"include": "x" * 513}, "include.0"),
        ({"include": ["x"] * 100}, "include"),
        ({"lmit": "3"}, "lmit"),
        ({f"x{i}": "3" for i in range(1000)}, "x0"),
    ],
)
def test_a_wrong_parameter_is_named(values: dict[str, str | list[str]], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_query(Page, values)
    assert caught.value.param == param


def _asked(**given: object) -> Asked:
    asked = Asked(kind="x", model=None, content=["a"], param="prompt", params=SamplingParams())
    for name, value in given.items():
        setattr(asked, name, value)
    return asked


def test_access_rules_apply() -> None:
    rules = Rules(isolate_cache=True, priorities=(0, 5), disclose=False)
    call = Call(caller=Caller("alice"), rules=rules, session="header")
    asked = call.admit(_asked(session="body", priority=9, cache_salt="s"))
    assert (asked.session, asked.priority) == ("header", 5)
    assert asked.cache_salt == rules.cache_salt(Caller("alice"), "s") != "s"
    assert not call.tells
    assert Call(caller=Caller("root", operator=True), rules=rules).tells
    assert Call().admit(_asked(session="body", cache_salt="s")).session == "body"
    assert Call(asker="alice").admit(_asked()).asker == "alice"
    with pytest.raises(BadRequest, match="priority"):
        Call().admit(_asked(priority=1))


def test_quotas_are_for_those_who_wait_for_an_answer() -> None:
    caller = Caller("alice", tenant=Tenant("acme", 2.0, requests_per_minute=1))
    assert Call(caller=caller).admit(_asked()).tenant == caller.tenant
    assert Call(caller=caller, below=True).admit(_asked()).tenant == Tenant("acme", 2.0)


@pytest.mark.parametrize("large", [False, True])
def test_a_handle_gets_whole_answers(service: Service, large: bool) -> None:
    async def run(service: Service, call: Call) -> Listing:
        return Listing(count=2, entry=lambda i: i + call.body, weight=CHUNK if large else 1, at=("data",))

    listed = Operation(method="POST", path="/", summary="", answers=dict, run=run, errors=ERRORS)
    assert asyncio.run(answered(listed, service, 3)) == {"data": [3, 4]}

    async def told(service: Service, call: Call) -> dict[str, int]:
        return {"told": call.body}

    assert asyncio.run(answered(replace(listed, run=told), service, 3)) == {"told": 3}
