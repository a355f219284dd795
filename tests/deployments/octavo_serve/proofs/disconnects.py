"""Thousands of short requests whose clients leave at random moments: nothing may be left of any of them.

    python tests/deployments/octavo_serve/proofs/disconnects.py CONFIG --requests 10000

Half of the clients read their answer to its end; the others leave before the answer, in its middle, or while they still
send. Afterwards no sequence may run or wait, no KV block may be held, and the gateway and its router must know of no
request. Resident memory of the gateway and the shards is printed on the way. Exit code 1 if anything is left or a
client that stayed got no answer. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from running import RunningServer, metric, parser

LEFT = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
    "at_gateway": "octavo_requests_at_shards",
    "at_router": "octavo_router_in_flight",
}


def main() -> None:
    options = arguments()
    with RunningServer(options.config, options.port) as server:
        result = asyncio.run(prove(server, options))
    print(json.dumps(result))
    # a router takes note of an end with its next decision: that of the last request of all is still to come
    left = {name: value for name, value in result["left"].items() if value > (name == "at_router")}
    sys.exit(0 if not left and set(result["ends"]) <= {"whole", "left"} else 1)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--clients", type=int, default=32, help="at once")
    return options.parse_args()


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)
    ends: Counter[str] = Counter()
    numbers = iter(range(options.requests))
    start = time.monotonic()
    memory = [resident(server)]

    async def client() -> None:
        for number in numbers:
            ends[await request(server, rng, number)] += 1
            if (number + 1) % max(1, options.requests // 10) == 0:
                memory.append(resident(server))
                print(f"{number + 1} requests, MB resident: {memory[-1]}", flush=True)

    await asyncio.gather(*(client() for _ in range(options.clients)))
    seconds = time.monotonic() - start
    left = await what_is_left(server)
    return {"requests": options.requests, "seconds": round(seconds), "ends": dict(ends), "left": left,
            "resident_mb": memory}  # fmt: skip


async def request(server: RunningServer, rng: random.Random, number: int) -> str:
    """How one client fared: "whole", "left", or what was wrong."""
    stream, stays = rng.random() < 0.7, rng.random() < 0.5
    body = json.dumps(
        {"model": server.model, "prompt": f"{number} " + "word " * rng.randrange(60), "stream": stream,
         "max_tokens": rng.randrange(1, 24), "n": rng.choice((1, 1, 1, 2)), "ignore_eos": True}
    ).encode()  # fmt: skip
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        if not stays and rng.random() < 0.1:
            writer.write((head + body)[: rng.randrange(len(head + body))])
            return "left"
        writer.write(head + body)
        if not stays and rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0, 0.2))
            return "left"
        received = await reader.readline()
        if not received.startswith(b"HTTP/1.1 200"):
            return f"{received!r} {(await reader.read())[-200:]!r}"
        if not stays:
            for _ in range(rng.randrange(12)):
                await reader.readline()
            return "left"
        received = await reader.read()
        whole = b"data: [DONE]" in received if stream else b'"usage"' in received
        return "whole" if whole and b'"error"' not in received else f"no end: {received[-200:]!r}"
    except OSError as error:
        return repr(error)
    finally:
        writer.transport.abort()


async def what_is_left(server: RunningServer) -> dict[str, float]:
    """Once nothing more changes: a shard learns of a client that left within a step or two."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        for _ in range(50):
            await client.post("/v1/completions", json={"model": server.model, "prompt": "last", "max_tokens": 1})
            left = {name: await metric(client, of) for name, of in LEFT.items()}
            if not any(value for name, value in left.items() if name != "at_router"):
                break
            await asyncio.sleep(0.2)
        return left


def resident(server: RunningServer) -> dict[str, int]:
    """MB of each replica, by deployment; memory it shares with others counts in full."""
    found: dict[str, int] = {}
    for pid, command in server.replicas():
        name = command.partition(".")[0]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found[name] = found.get(name, 0) + pages * 4096 // 2**20
    return found


if __name__ == "__main__":
    main()
