"""Twelve cache misses and twelve delays, each brought about and each named by the explanation; causes that sum up for
each of 10,000 requests; and what remembering costs.

    python tests/deployments/octavo_serve/proofs/explain.py [misses] [delays] [sums] [cost] [gateway]

Misses and cost run on the real model, the rest on simulated steps (`gateway` measures the cost where steps take no
time: everything else than the model); gateway and shards are those that serve, in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from explained import MODEL, World

from octavo.config import EngineConfig
from octavo.request import Adapter
from octavo_serve.api.access import Caller
from octavo_serve.api.adapters import AdapterEntry

RULES = "You answer in one sentence, politely, and you never speak about anything but the weather of the day. "
LONG = "Tell me all about the weather of the town, and leave nothing out that you know of it, please. " * 6
ASKS = {"role": "user", "content": LONG}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Says {name} of a town.", "parameters": {}}}
    for name in ("rain", "wind", "sunshine")
]
KEYS = {"a": Caller("alice"), "b": Caller("bob"), "o": Caller("root", operator=True)}


def system(text: str, *rest: Any) -> list[Any]:
    return [{"role": "system", "content": text}, ASKS, *rest]


def config(**engine: Any) -> EngineConfig:
    return EngineConfig(**{"max_num_seqs": 16, "speculation": False, "kv_cache_bytes": 2**26, **engine})


# ---- misses -------------------------------------------------------------------------------------------------------


async def misses() -> list[tuple[str, str | None]]:
    """(expected, told) of each."""
    found: list[tuple[str, str | None]] = []

    async def expect(reason: str | None, world: World, answer: dict[str, Any], key: str = "") -> None:
        prefix = (await world.explain(answer, key))["prompts"][0]["prefix"]
        found.append((str(reason), str(prefix["reason"])))
        print(json.dumps({"expected": reason, "told": prefix["reason"], "nearest": prefix["nearest"]}), flush=True)

    async with World(config(), None) as world:
        await expect("new", world, await world.chat(system(RULES)))
        await expect(None, world, await world.chat(system(RULES)))
        await expect("short", world, await world.complete("Hi"))
        await world.chat(system(f"The time is 12:01:07. {RULES}"))
        await expect("header", world, await world.chat(system(f"The time is 12:03:44. {RULES}")))
        await world.chat(system(f"x-billing-header: cc=2.1; cch=00a1f;\n{RULES}"))
        await expect("header", world, await world.chat(system(f"x-billing-header: cc=2.1; cch=9b7e2;\n{RULES}")))
        await world.chat(system(RULES), tools=TOOLS)
        await expect("tools_order", world, await world.chat(system(RULES), tools=TOOLS[::-1]))
        await expect("namespace", world, await world.chat(system(RULES), cache_salt="other"))
        thinks = {"regex": "<think>It is November\\.</think>It rains\\."}
        world.read_as("qwen3_xml")
        await world.chat(system("Think. " + RULES), structured_outputs=thinks, max_tokens=40)
        said = {"role": "assistant", "content": "It rains."}
        more = {"role": "user", "content": "And tomorrow?"}
        await expect("thinking", world, await world.chat(system("Think. " + RULES, said, more)))
        encode = world.tokenizer.encode
        ids = [
            token
            for piece in (RULES, "un", "believ", "able wea", "ther. ")
            for token in encode(piece, add_special_tokens=False)
        ]
        await world.complete(ids)
        again = world.tokenizer.decode(ids) + RULES
        await expect("retokenised", world, await world.complete(again))
    async with World(config(), None, keys=KEYS, isolate_cache=True) as world:
        await world.chat(system(RULES), "a")
        theirs = await world.chat(system(RULES), "b")
        await expect("namespace", world, theirs, "o")
        await expect("new", world, theirs, "b")  # whom it is none of their business
    async with World(config(kv_cache_bytes=2**24), None) as world:
        await world.chat(system(RULES))
        for number in range(6):
            await world.chat(system(f"{number} {RULES}"))
        await expect("evicted", world, await world.chat(system(RULES)))
    async with World(config(), None, shards=2, policy="round_robin") as world:
        await world.chat(system(RULES))
        await expect("other_shard", world, await world.chat(system(RULES)))
        world.kill(world.ports[0])
        await asyncio.sleep(0.2)
        await world.complete("Hi")
    async with World(config()) as world:
        world.service.models.adapters.entries["sql"] = AdapterEntry(
            "sql", MODEL, "/nowhere", adapter=Adapter("sql", "5" * 16, "/nowhere")
        )
        await world.chat(system(RULES))
        await expect("adapter", world, await world.chat(system(RULES), model="sql"))
    return found


# ---- delays -------------------------------------------------------------------------------------------------------

SLOW = (2e-2, 1e-5)


async def delays() -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []

    def longest(told: dict[str, Any], start: float = 0.0) -> str:
        """What most of the time went to before the first token, or after it."""
        sums: dict[str, float] = {}
        for span in told["prompts"][0]["spans"]:
            if (span["at"] >= start) == bool(start) or not start:
                name = span["cause"] or span["what"]
                sums[name] = sums.get(name, 0.0) + span["seconds"]
        return max(sums, key=sums.__getitem__)

    async def expect(cause: str, world: World, answer: dict[str, Any]) -> None:
        told = await world.explain(answer)
        found.append((cause, longest(told)))
        print(json.dumps({"expected": cause, "told": found[-1][1], "sentence": told["sentence"]}), flush=True)

    async def crowd(world: World, count: int, **fields: Any) -> list[dict[str, Any]]:
        return await asyncio.gather(*(world.chat(f"{n}: {LONG}", **{"max_tokens": 12, **fields}) for n in range(count)))

    async with World(config(), SLOW, capacity=1) as world:
        await expect("queue", world, (await crowd(world, 4))[-1])
    async with World(config(max_num_seqs=1), SLOW) as world:
        await expect("place", world, (await crowd(world, 4))[-1])
    async with World(config(kv_cache_bytes=2**18 + 2**17), SLOW) as world:
        await expect("blocks", world, (await crowd(world, 5))[-1])
    async with World(config(max_num_batched_tokens=64), SLOW) as world:
        await expect("budget", world, (await crowd(world, 8))[-1])
    async with World(config(kv_cache_bytes=2**19), SLOW) as world:
        answers = await crowd(world, 2, max_tokens=180)
        told = [(await world.explain(answer), answer) for answer in answers]
        worst = max(told, key=lambda each: each[0]["prompts"][0]["causes"].get("preempted", 0.0))
        found.append(("preempted", max(worst[0]["prompts"][0]["causes"], key=worst[0]["prompts"][0]["causes"].get)))
        print(json.dumps({"expected": "preempted", "told": found[-1][1], "sentence": worst[0]["sentence"]}))
    async with World(config(), SLOW) as world:
        many = {
            "type": "object",
            "properties": {f"field{n}": {"enum": [f"{n} {m}" for m in range(60)]} for n in range(60)},
        }
        schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": many}}
        engine = world.ports[0].engine
        begin = engine._compiling.begin
        engine._compiling.begin = lambda *args: asyncio.get_running_loop().call_later(0.5, begin, *args)  # type: ignore[method-assign]
        await expect("grammar", world, await world.chat("Say it.", response_format=schema, max_tokens=2))
    async with World(config(), SLOW) as world:
        world.service.models.adapters.entries["sql"] = AdapterEntry(
            "sql", MODEL, "/nowhere", adapter=Adapter("sql", "5" * 16, "/nowhere")
        )
        world.ports[0].engine.engine.executor.load_adapter = lambda adapter: time.sleep(0.5) or 0  # type: ignore[method-assign]
        await expect("adapter", world, await world.chat("Hello.", model="sql", max_tokens=2))
    async with World(config(), SLOW, shards=1) as world:
        asked = asyncio.create_task(world.chat(LONG, max_tokens=20))
        while world.ports[0].engine.engine.generation_tokens < 4:
            await asyncio.sleep(0.01)
        world.kill(world.ports[0])
        await asyncio.sleep(1.0)
        await world.add()
        told = await world.explain(await asked)
        causes = told["prompts"][0]["causes"]
        found.append(
            ("moved", "moved" if causes.get("failover") or len(told["prompts"][0]["routing"]) > 1 else str(causes))
        )
        print(json.dumps({"expected": "moved", "told": found[-1][1], "sentence": told["sentence"]}))
    async with World(config(), SLOW) as world:
        launch, left = world.ports[0].engine.engine.executor.launch, [1]

        def fails(batch: Any) -> Any:
            if batch.num_seqs > 2 and left:
                left.pop()
                time.sleep(0.5)
                raise RuntimeError("once")
            return launch(batch)

        world.ports[0].engine.engine.executor.launch = fails  # type: ignore[method-assign]
        answers = await crowd(world, 4, max_tokens=2)
        told = [await world.explain(answer) for answer in answers]
        named = {cause for each in told for cause in each["prompts"][0]["causes"]}
        found.append(("failed", "failed" if "failed" in named else str(named)))
        print(json.dumps({"expected": "failed", "told": found[-1][1], "sentence": told[-1]["sentence"]}))
    async with World(config(max_num_batched_tokens=8192), (5e-1, 0)) as world:
        asked = asyncio.create_task(world.chat(LONG, max_tokens=2))
        await asyncio.sleep(0.15)
        late = await world.chat("Hello.", max_tokens=1)
        told = await world.explain(late)
        causes = told["prompts"][0]["causes"]
        found.append(("engine", max(causes, key=causes.get)))
        print(json.dumps({"expected": "engine", "told": found[-1][1], "sentence": told["sentence"]}))
        await asked
    async with World(config(), (1e-3, 2e-3)) as world:
        await expect("prefill", world, await world.chat(LONG, max_tokens=1))
    async with World(config(), SLOW) as world:
        await expect("decode", world, await world.chat("Hello.", max_tokens=40))
    return found


# ---- sums ---------------------------------------------------------------------------------------------------------


async def sums(requests: int) -> dict[str, float]:
    """How far a request's spans are from side by side and from its whole time; how long the way to the shard took."""
    rng, worst, away, untold = random.Random(1), 0.0, list[float](), 0
    setting = config(max_num_seqs=32, max_num_batched_tokens=256, kv_cache_bytes=2**21)
    async with World(setting, (1e-3, 2e-6), shards=2, capacity=48) as world:
        places = asyncio.Semaphore(128)

        async def one() -> None:
            nonlocal worst, untold
            async with places:
                said = f"{rng.randrange(400)} {LONG[: rng.randrange(400)]}"
                answer = await world.chat(said, max_tokens=rng.randrange(1, 24))
                told = await world.explain(answer)
            spans = told["prompts"][0]["spans"]
            gaps = [abs(a["at"] + a["seconds"] - b["at"]) for a, b in itertools.pairwise(spans)]
            off = abs(sum(span["seconds"] for span in spans) - told["seconds"])
            worst = max(worst, off, *gaps, told["seconds"] - answer["seconds"])
            away.append(sum(span["seconds"] for span in spans if span["what"] == "transport"))
            untold += not any(span["what"] == "prefill" for span in spans)

        await asyncio.gather(*(one() for _ in range(requests)))
    cuts = statistics.quantiles(away, n=100)
    return {"largest_difference_s": worst, "untold": untold, "transport_s_p50": cuts[49], "transport_s_p99": cuts[98]}


# ---- cost ---------------------------------------------------------------------------------------------------------


async def cost(rounds: int, step: tuple[float, float] | None) -> dict[str, float]:
    """Seconds of CPU that a request takes with and without: medians of interleaved rounds of 64 streams."""
    took: dict[bool, list[float]] = {True: [], False: []}
    async with World(config(max_num_seqs=64), step) as world:
        explaining = world.service.explaining
        for number in range(2 * rounds + 2):
            world.service.explaining = explaining if number % 2 else None
            asked = (world.chat(f"{number} {each} {LONG[:300]}", max_tokens=64) for each in range(64))
            begin = time.process_time()
            await asyncio.gather(*asked)
            if number > 1:  # the first two are warmer or colder than the rest
                took[number % 2 == 1].append((time.process_time() - begin) / 64)
    on, off = statistics.median(took[True]), statistics.median(took[False])
    return {"cpu_s_per_request_with": on, "without": off, "more": on / off - 1}


def report(name: str, found: list[tuple[str, str | None]]) -> bool:
    right = sum(expected == told for expected, told in found)
    print(json.dumps({name: len(found), "right": right, "wrong": [each for each in found if each[0] != each[1]]}))
    return right == len(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", default=["misses", "delays", "sums", "cost", "gateway"])
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=10)
    asked = options.parse_args()
    told: dict[str, Callable[[], Awaitable[Any]]] = {
        "misses": misses,
        "delays": delays,
        "sums": lambda: sums(asked.requests),
        "cost": lambda: cost(asked.rounds, None),
        "gateway": lambda: cost(4 * asked.rounds, (1e-5, 0)),
    }
    fine = True
    for part in asked.parts:
        found = asyncio.run(told[part]())  # type: ignore[arg-type]
        if isinstance(found, list):
            fine &= report(part, found)
        else:
            print(json.dumps({part: found}))
            fine &= not found.get("untold") and found.get("largest_difference_s", 0) < 1e-3
            fine &= part != "cost" or found["more"] < 0.01
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
