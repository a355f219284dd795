"""A line of a batch is answered as anybody is, whatever it asks, though its shard tells it whole."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig
from octavo_serve.api.access import Caller
from octavo_serve.http.app import http_app
from octavo_serve.http.inside import ask

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))

from explained import World

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
LONG = "Tell me all about the history of the town, and leave nothing out. " * 9


def chat(**body: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": LONG}], "max_tokens": 30, "temperature": 0} | body


LINES = [
    (CHAT, chat()),
    (CHAT, chat(n=5, max_tokens=7)),
    (CHAT, chat(logprobs=True, top_logprobs=3)),
    (CHAT, chat(response_format=FORMAT)),
    (CHAT, chat(stop=["e"])),
    (CHAT, chat(max_tokens=600)),
    (TEXT, {"model": "m", "prompt": ["One", "Two", LONG], "max_tokens": 9, "n": 2, "echo": True, "logprobs": 2}),
    (TEXT, {"model": "m", "prompt": "One", "max_tokens": 9, "best_of": 3, "n": 1}),
    ("/v1/responses", {"model": "m", "input": LONG, "max_output_tokens": 30, "store": False}),
    ("/v1/messages", {"model": "m", "messages": chat()["messages"], "max_tokens": 30}),
    ("/v1/embeddings", {"model": "m", "input": ["One", "Two"]}),
]


def said(answer: Any) -> Any:
    """An answer without names, times and what the cache had."""
    if isinstance(answer, dict):
        own = ("id", "created", "created_at", "completed_at", "usage", "seconds")
        return {name: said(value) for name, value in answer.items() if name not in own}
    return [said(each) for each in answer] if isinstance(answer, list) else answer


@pytest.mark.parametrize("moves", [False, True])
def test_lines_are_answered_as_anybody_is(moves: bool) -> None:
    """Also where their shard is lost once: what it had not told is computed again."""

    async def scenario() -> None:
        config = EngineConfig(max_num_seqs=64, speculation=False)
        async with World(config, step=(4e-3, 1e-6), shards=2) as world:
            app = http_app(world.service, world, world.access)
            await world.chat("Hello")

            async def line(path: str, body: dict[str, Any]) -> Any:
                reply = await ask(app.inside, Caller(), path, json.dumps(body).encode())
                assert reply.status == 200, reply.body
                assert reply.usage.prompt_tokens > 0
                return said(json.loads(reply.body))

            plain = [said(await world.post(path, body)) for path, body in LINES]
            lines = asyncio.gather(*(line(path, body) for path, body in LINES))
            if moves:
                await asyncio.sleep(0.3)
                world.kill(world.ports[0])
            for (path, body), found, expected in zip(LINES, await lines, plain, strict=True):
                assert found == expected, (path, body)

    asyncio.run(scenario())
