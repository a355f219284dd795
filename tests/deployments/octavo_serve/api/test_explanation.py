"""What is said of requests that a gateway sent to real shards with a model that only counts."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))

from explained import World

LONG = "Tell me all about the history of the town, and leave nothing out that you know of it. " * 12
SLOW = (2e-2, 1e-5)


def config(**engine: Any) -> EngineConfig:
    return EngineConfig(**{"max_num_seqs": 16, "speculation": False, **engine})


def run(scenario: Callable[[World], Awaitable[None]], world: World) -> None:
    async def main() -> None:
        async with world:
            await scenario(world)

    asyncio.run(main())


def check(told: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """That its spans are side by side and as long as it took; returns the first prompt."""
    first: dict[str, Any] = told["prompts"][0]
    spans = first["spans"]
    assert spans[0]["at"] == 0
    for before, after in itertools.pairwise(spans):
        assert after["at"] == pytest.approx(before["at"] + before["seconds"], abs=1e-5)
    assert sum(span["seconds"] for span in spans) == pytest.approx(told["seconds"], abs=1e-4)
    assert told["seconds"] <= answer["seconds"]
    return first


def test_time_and_tokens_are_told_to_the_end() -> None:
    async def scenario(world: World) -> None:
        answer = await world.chat(LONG)
        told = await world.explain(answer)
        first = check(told, answer)
        assert (told["model"], told["running"]) == ("m", False)
        assert 0 < told["first_token"] < told["seconds"]
        assert {span["what"] for span in first["spans"]} >= {"prepare", "prefill", "decode"}
        usage = answer["usage"]
        assert first["tokens"] == {
            "prompt": usage["prompt_tokens"], "cached": 0, "computed": usage["prompt_tokens"], "generated": 8,
            "forced": 0, "proposed": 0, "accepted": 0,
        }  # fmt: skip
        assert first["routing"][0]["shard"] == "shard-0"
        assert first["prefix"]["reason"] == "new"
        again = check(await world.explain(answer := await world.chat(LONG)), answer)
        assert again["prefix"]["reason"] is None
        assert again["tokens"]["cached"] == again["prefix"]["possible_tokens"]

    run(scenario, World(config()))


@pytest.mark.parametrize(
    ("settings", "capacity", "prompts", "cause"),
    [
        ({"max_num_seqs": 1}, 256, 3, "place"),
        ({"kv_cache_bytes": 2**19}, 256, 3, "blocks"),
        ({"max_num_batched_tokens": 64}, 256, 6, "budget"),
        ({}, 1, 3, "queue"),
    ],
)
def test_what_held_a_request_up(settings: dict[str, Any], capacity: int, prompts: int, cause: str) -> None:
    async def scenario(world: World) -> None:
        asked = [world.chat(f"{number}: {LONG}", max_tokens=12) for number in range(prompts)]
        answers = await asyncio.gather(*asked)
        told = [(await world.explain(answer), answer) for answer in answers]
        causes = [check(*each)["causes"] for each in told]
        worst = max(causes, key=lambda each: each.get(cause, 0.0))
        assert max(worst, key=worst.__getitem__) == cause
        assert "It waited" in told[causes.index(worst)][0]["sentence"]

    run(scenario, World(config(**settings), SLOW, capacity=capacity))


def test_a_move_to_another_shard_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        asked = asyncio.create_task(world.chat(LONG, max_tokens=40))
        while not (busy := [port for port in world.ports if port.engine.engine.generation_tokens > 4]):
            await asyncio.sleep(0.01)
        world.kill(busy[0])
        answer = await asked
        first = check(await world.explain(answer), answer)
        where = list(dict.fromkeys(span["where"] for span in first["spans"]))
        assert set(where) == {"gateway", "shard-0", "shard-1"}
        assert "failover" in first["causes"]
        assert len(first["routing"]) == 2

    run(scenario, World(config(), SLOW, shards=2))


def test_where_the_blocks_are() -> None:
    async def scenario(world: World) -> None:
        await world.chat(LONG)
        other = await world.chat(LONG)
        prompt = (await world.explain(other))["prompts"][0]
        here, prefix = prompt["routing"][0]["shard"], prompt["prefix"]
        assert prefix["reason"] == "other_shard"
        assert sorted([here, *prefix["held_by"]]) == ["shard-0", "shard-1"]
        salted = await world.chat(LONG, cache_salt="x")
        prefix = (await world.explain(salted))["prompts"][0]["prefix"]
        assert prefix["reason"] == "namespace"

    run(scenario, World(config(), shards=2, policy="round_robin"))


def test_who_evicted_a_block_is_told_to_operators() -> None:
    async def scenario(world: World) -> None:
        await world.chat(LONG)
        others = [await world.chat(f"{number} {LONG}") for number in range(4)]
        again = await world.chat(LONG)
        prefix = (await world.explain(again))["prompts"][0]["prefix"]
        assert prefix["reason"] == "evicted"
        assert prefix["evicted_seconds_ago"] > 0
        assert prefix["evicted_by"].rpartition("-")[0] in {other["id"] for other in [*others, again]}
        assert 'octavo:prefix_miss_total{model_name="m",reason="evicted"}' in (await world.get("/metrics")).text

    run(scenario, World(config(kv_cache_bytes=2**20)))


def test_several_sequences_and_prompts() -> None:
    async def scenario(world: World) -> None:
        answer = await world.chat(LONG, n=3)
        told = await world.explain(answer)
        first = check(told, answer)
        assert first["tokens"]["generated"] == 24
        assert list(first["later"])  # two found no place when the prompt was complete
        answer = await world.complete([LONG, "Hello"])
        told = await world.explain(answer)
        assert [prompt["tokens"]["generated"] for prompt in told["prompts"]] == [8, 8]

    run(scenario, World(config(max_num_seqs=1)))
