"""Who is told why a request took so long."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.config import EngineConfig
from octavo_serve.api.access import Caller

sys.path.insert(0, str(Path(__file__).parents[2] / "proofs"))

from explained import World

LONG = "Tell me all about the history of the town, and leave nothing out that you know of it. " * 12


def config(**engine: Any) -> EngineConfig:
    return EngineConfig(**{"max_num_seqs": 16, "speculation": False, **engine})


def run(scenario: Callable[[World], Awaitable[None]], world: World) -> None:
    async def main() -> None:
        async with world:
            await scenario(world)

    asyncio.run(main())


def test_only_who_asked_and_operators_are_told_and_texts_by_their_own_key_alone() -> None:
    keys = {"a": Caller("alice"), "b": Caller("bob"), "o": Caller("root", operator=True)}

    async def scenario(world: World) -> None:
        await world.chat(f"At 12:01 {LONG}", "a")
        answer = await world.chat(f"At 12:44 {LONG}", "a")
        path = f"/v1/requests/{answer['id']}/explain"
        nearest = (await world.explain(answer, "a"))["prompts"][0]["prefix"]["nearest"]
        assert (nearest["then"][:2], nearest["now"][:2]) == ("01", "44")
        seen = (await world.explain(answer, "o"))["prompts"][0]["prefix"]["nearest"]
        assert (seen["then"], seen["now"], seen["before"]) == (None, None, None)
        assert LONG[:20] not in (await world.get(path, "o")).text
        refused = await world.get(path, "b")
        unknown = await world.get("/v1/requests/chatcmpl-0/explain", "b")
        assert (refused.status_code, unknown.status_code) == (404, 404)
        assert refused.json()["error"]["message"].replace(answer["id"], "X") == unknown.json()["error"][
            "message"
        ].replace("chatcmpl-0", "X")
        world.access.rules = replace(world.access.rules, disclose=False)
        withheld = (await world.explain(answer, "a"))["prompts"][0]
        assert (withheld["prefix"], withheld["routing"], withheld["tokens"]["cached"]) == (None, [], None)
        assert "shard-0" not in str(withheld)
        assert (await world.explain(answer, "o"))["prompts"][0]["prefix"] is not None
        world.access.rules = replace(world.access.rules, disclose=True)
        theirs = await world.chat(f"At 12:01 {LONG}", "b")
        assert (await world.explain(theirs, "b"))["prompts"][0]["prefix"]["nearest"] is None
        assert (await world.explain(theirs, "b"))["prompts"][0]["prefix"]["reason"] == "new"
        assert (await world.explain(theirs, "o"))["prompts"][0]["prefix"]["reason"] == "namespace"

    run(scenario, World(config(), keys=keys, isolate_cache=True))


def test_nothing_is_told_where_nothing_is_remembered() -> None:
    async def scenario(world: World) -> None:
        answer = await world.chat("Hello")
        refused = await world.get(f"/v1/requests/{answer['id']}/explain")
        assert refused.status_code == 404
        assert "explain_bytes" in refused.json()["error"]["message"]
        assert (await world.get("/v1/requests")).status_code == 404

    run(scenario, World(config(), explain_bytes=0))


def test_each_key_is_listed_its_own_last_requests_and_operators_everybodys() -> None:
    keys = {"a": Caller("alice"), "b": Caller("bob"), "o": Caller("root", operator=True)}

    async def scenario(world: World) -> None:
        async def listed(key: str, query: str = "") -> list[str]:
            told = await world.get(f"/v1/requests{query}", key)
            assert told.status_code == 200, told.text
            return [request["id"] for request in told.json()["data"]]

        first, slow = await world.chat("Hello", "a"), await world.chat(LONG, "a", max_tokens=40)
        theirs = await world.complete(["One", "Two"], "b")
        assert await listed("a") == [slow["id"], first["id"]]
        assert await listed("b") == [theirs["id"]], "two prompts are one request"
        assert await listed("o", "?limit=2") == [theirs["id"], slow["id"]]
        latest, slowest = [
            (await world.get(f"/v1/requests?order={order}", "a")).json()["data"] for order in ("latest", "slowest")
        ]
        assert slowest == sorted(latest, key=lambda request: -request["seconds"])
        told = latest[0]
        assert (told["generated_tokens"], told["finish_reasons"], told["running"]) == (40, ["length"], False)
        assert told["prompt_tokens"] == slow["usage"]["prompt_tokens"]
        assert 0 < told["first_token"] < told["seconds"]
        refused = [
            await world.get(f"/v1/requests?{query}", "a") for query in ("limit=0", "limit=101", "order=x", "a=b")
        ]
        assert [each.status_code for each in refused] == [400] * 4

    run(scenario, World(config(), keys=keys))


def test_where_nobody_is_known_nothing_is_listed() -> None:
    async def scenario(world: World) -> None:
        answer = await world.chat("Hello")
        assert [each["id"] for each in (await world.get("/v1/requests")).json()["data"]] == [answer["id"]]
        world.access.rules = replace(world.access.rules, disclose=False)
        refused = await world.get("/v1/requests")
        assert (refused.status_code, "without keys" in refused.text) == (404, True)
        assert answer["id"] not in refused.text

    run(scenario, World(config()))
