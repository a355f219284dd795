"""Decisions over real sockets: a request's prompts reach a shard with what they ask for, and survive it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.operation import Call
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.surfaces.decisions.operations import decisions
from octavo_serve.surfaces.decisions.schemas import DecisionRequest

BODY = {
    "input": "I was charged twice. " * 10,
    "questions": [
        {"type": "predicate", "instructions": "Urgent?"},
        *({"type": "choice", "instructions": f"{i}?", "choices": [{"value": "a"}, {"value": "b"}]} for i in range(9)),
    ],
}


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_a_shard(fleet: Any, tiny_model: Callable[[str], Path], dies: bool) -> None:
    tokenizer = load_tokenizer(resolve_source(str(tiny_model("qwen3"))))
    fleet.admitted = lambda *_: nullcontext()
    found: list[Any] = []

    async def ask(client: Any) -> None:
        entry = ModelEntry("tiny", 1, client, tokenizer=tokenizer, info=await client.describe(), shards=1)
        service = Service(Registry([entry]), Limits(), Telemetry())
        found.append(await decisions(service, Call(body=parse(DecisionRequest, BODY))))

    async def scenario(client: Any) -> None:
        first = await fleet.add()
        await ask(client)
        if dies:
            await fleet.add()
            again = asyncio.create_task(ask(client))
            while not first.engine.engine.pool.num_owned:
                await asyncio.sleep(0)
            fleet.kill(first)
            await again
        else:
            await ask(client)

    moves = fleet.run(scenario)
    assert bool(moves) == dies
    assert found[0]["answers"] == found[1]["answers"]
    assert {answer["type"] for answer in found[0]["answers"]} == {"predicate", "choice"}
