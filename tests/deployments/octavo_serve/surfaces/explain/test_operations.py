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

    run(scenario, World(config(), explain_bytes=0))
