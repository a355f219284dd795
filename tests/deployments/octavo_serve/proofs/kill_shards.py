"""Kill -9 a shard at a random moment under load, again and again: no client may notice.

    python tests/deployments/octavo_serve/proofs/kill_shards.py CONFIG --kills 50

Starts `octavo serve CONFIG`, records what each of its requests says in an unbroken run, then keeps `--streams` of them
under way while shards die: greedy and seeded, one choice and three, streamed and whole. Every answer must be complete
and equal to the unbroken one. Exit code 1 if one was not. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from running import RunningServer, metric, parser

Body = dict[str, Any]


def main() -> None:
    options = arguments()
    with RunningServer(options.config, options.port) as server:
        result = asyncio.run(prove(server, options))
    print(json.dumps(result))
    sys.exit(0 if result["wrong"] == {} and result["left_running"] == 0 else 1)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--pause", type=float, default=4.0, help="mean seconds between two kills")
    options.add_argument("--streams", type=int, default=16, help="requests under way at once")
    options.add_argument("--tokens", type=int, default=400)
    return options.parse_args()


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=100)) as client:
        bodies = [{"model": server.model, **body} for body in requests(options.tokens, random.Random(options.seed))]
        unbroken = [await texts(client, body) for body in bodies]
        seen: Counter[str] = Counter()
        over = asyncio.Event()
        clients = [
            asyncio.create_task(keep_asking(client, bodies, unbroken, seen, over)) for _ in range(options.streams)
        ]
        start = time.monotonic()
        killed = await kill(server, options)
        over.set()
        await asyncio.gather(*clients)
        moved = await metric(client, "octavo_stream_moves_total")
        left = await metric(client, "vllm:num_requests_running")
    right = seen.pop("right", 0)
    return {"kills": killed, "seconds": round(time.monotonic() - start), "answers": right + sum(seen.values()),
            "right": right, "moves": int(moved), "left_running": int(left), "wrong": dict(seen)}  # fmt: skip


def requests(tokens: int, rng: random.Random) -> list[Body]:
    common = {"max_tokens": tokens, "ignore_eos": True}
    kinds: list[Body] = [{"temperature": 0}, {"seed": 7}, {"seed": 8, "n": 3}, {"seed": 9, "frequency_penalty": 0.5}]
    prompts = [" ".join(rng.choices(WORDS, k=40)) for _ in range(2)]
    return [
        common | kind | {"prompt": prompt, "stream": stream}
        for prompt in prompts for kind in kinds for stream in (False, True)
    ]  # fmt: skip


WORDS = ("sea", "stone", "wind", "river", "light", "house", "garden", "bread", "night", "road", "song", "winter")


async def keep_asking(
    client: httpx.AsyncClient, bodies: list[Body], unbroken: list[list[str]], seen: Counter[str], over: asyncio.Event
) -> None:
    while not over.is_set():
        which = random.randrange(len(bodies))
        try:
            found = await texts(client, bodies[which])
            seen["right" if found == unbroken[which] else "other text"] += 1
        except Exception as error:
            seen[f"{type(error).__name__}: {error}"[:200]] += 1


async def texts(client: httpx.AsyncClient, body: Body) -> list[str]:
    """The text of each choice; raises ValueError for an error in any form."""
    said = [""] * body.get("n", 1)
    if not body["stream"]:
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise ValueError(answer.text)
        for choice in answer.json()["choices"]:
            said[choice["index"]] = choice["text"]
        return said
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return said
            if line:
                event = json.loads(line.removeprefix("data: "))
                if "choices" not in event:
                    raise ValueError(line)
                for choice in event["choices"]:
                    said[choice["index"]] += choice["text"]
    raise ValueError("the stream ended without [DONE]")


async def kill(server: RunningServer, options: argparse.Namespace) -> int:
    rng = random.Random(options.seed)
    for done in range(options.kills):
        await asyncio.sleep(rng.uniform(0, 2 * options.pause))
        while not (shards := server.shards()):
            await asyncio.sleep(0.1)
        os.kill(rng.choice(shards), signal.SIGKILL)
        print(f"kill {done + 1}, {len(shards) - 1} shards left", flush=True)
    return options.kills


if __name__ == "__main__":
    main()
