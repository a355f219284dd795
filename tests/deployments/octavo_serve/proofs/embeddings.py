"""Embedding clients beside streams on one shard: neither starves; a body of 10,000 texts is bounded and can be left.

    python tests/deployments/octavo_serve/proofs/embeddings.py configs/quickstart.yaml [--seconds 60]

The config's first model both writes and embeds. Sixteen clients read streams, whose texts are checked, alone and then
beside `--clients` (64) who embed texts of 5 to 100 words, each the next when the last was answered, from a process of
their own; and alone again. Then one body of `--texts` (10,000) is answered beside the streams, and another is left
after two seconds.

Complained of are: a stream that failed or said something else; a p99 of the gaps beside embeddings of more than twice
that of the gaps alone; an embedding that failed, or a client whose slowest answer took more than twenty medians of all;
a gateway that grew by more than 256 MB; a shard that still worked ten seconds after its client had left. Exit code 1
then. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from hostile import Healthy, expected_texts, gateway_mb, percentiles
from running import RunningServer, metric, parser

WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"]
STREAMS = 16


def main() -> None:
    options = arguments()
    if options.embed_port:
        os.nice(5)  # they share a machine with the server, and are not what is measured
        print(json.dumps(asyncio.run(Embedding(options).run())))
        return
    with RunningServer(options.config, options.port) as server:
        result = asyncio.run(prove(server, options))
    print(*result["complaints"], sep="\n")
    print(json.dumps(result))
    sys.exit(1 if result["complaints"] else 0)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="of each part")
    options.add_argument("--clients", type=int, default=64, help="that embed")
    options.add_argument("--tokens", type=int, default=60, help="of each stream")
    options.add_argument("--texts", type=int, default=10_000, help="of the large body")
    options.add_argument("--embed-port", type=int, help=argparse.SUPPRESS)  # of the process that embeds
    options.add_argument("--model", help=argparse.SUPPRESS)
    return options.parse_args()


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    expected = await expected_texts(server.url, server.model, options.tokens)
    healthy = Healthy(server.url, server.model, options.tokens, expected * (STREAMS // len(expected)))
    await healthy.run_for(3.0)
    alone = await healthy.run_for(options.seconds / 2)
    embedding = asyncio.create_task(embed(server, options))
    beside = await healthy.run_until(embedding)
    alone += await healthy.run_for(options.seconds / 2)  # a machine with other work is not the same all the time
    memory = [gateway_mb(server)]
    large = asyncio.create_task(large_body(server, options.texts))
    beside_large = await healthy.run_until(large)
    memory.append(gateway_mb(server))
    result = {
        "p50_alone_ms": percentiles(alone)[0], "p50_ms": percentiles(beside)[0],
        "p99_alone_ms": percentiles(alone)[1], "p99_ms": percentiles(beside)[1],
        "p99_large_ms": percentiles(beside_large)[1], "longest_ms": round(1e3 * max(beside + beside_large), 1),
        "streams": healthy.finished, "failures": healthy.failures[:5],
        "embedding": await embedding, "large": await large, "gateway_mb": memory,
        "left": await left_body(server, options.texts),
    }  # fmt: skip
    return result | {"complaints": complaints(result, options)}


def complaints(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """What is not as it should be."""
    embedding = result["embedding"]
    found = {
        "a stream failed": bool(result["failures"]),
        "the p99 of the gaps more than doubled": result["p99_ms"] > 2 * result["p99_alone_ms"],
        "an embedding failed": embedding["failed"] > 0 or result["large"]["vectors"] != options.texts,
        "a client that embeds starved": embedding["slowest_ms"] > 20 * embedding["p50_ms"],
        "the gateway grew": result["gateway_mb"][1] > result["gateway_mb"][0] + 256,
        "work went on without its client": result["left"] is None or result["left"] > 10,
    }
    return [name for name, wrong in found.items() if wrong]


async def embed(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    """What clients in another process saw."""
    command = [sys.executable, __file__, str(options.config), "--embed-port", str(server.port)]
    command += ["--model", server.model, "--seconds", str(options.seconds), "--clients", str(options.clients)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    found: dict[str, Any] = json.loads((await process.communicate())[0])
    return found


class Embedding:
    """Clients that embed one text after another."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._took: list[float] = []
        self._failed = 0

    async def run(self) -> dict[str, Any]:
        url, options = f"http://127.0.0.1:{self._options.embed_port}", self._options
        end = time.monotonic() + options.seconds
        limits = httpx.Limits(max_connections=options.clients)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._client(client, number, end) for number in range(options.clients)))
        ordered = sorted(self._took)
        return {
            "texts_per_s": round(len(ordered) / options.seconds, 1), "failed": self._failed,
            "p50_ms": round(1e3 * statistics.median(ordered), 1),
            "p99_ms": round(1e3 * ordered[len(ordered) * 99 // 100], 1), "slowest_ms": round(1e3 * ordered[-1], 1),
        }  # fmt: skip

    async def _client(self, client: httpx.AsyncClient, number: int, end: float) -> None:
        draw = random.Random(f"{self._options.seed}/{number}")
        while time.monotonic() < end:
            body = {"model": self._options.model, "input": text(draw), "encoding_format": "base64"}
            begin = time.monotonic()
            answer = await client.post("/v1/embeddings", json=body)
            self._took.append(time.monotonic() - begin)
            self._failed += answer.status_code != 200


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(5, 100)))


def large(model: str, count: int) -> dict[str, Any]:
    draw = random.Random(count)
    return {"model": model, "input": [" ".join(draw.choices(WORDS, k=8)) for _ in range(count)]}


async def large_body(server: RunningServer, count: int) -> dict[str, Any]:
    """One body of many texts, and how long its answer took."""
    begin = time.monotonic()
    async with httpx.AsyncClient(base_url=server.url, timeout=1200) as client:
        answer = await client.post("/v1/embeddings", json=large(server.model, count) | {"encoding_format": "base64"})
    found = answer.json()
    vectors = len(found["data"]) if answer.status_code == 200 else found
    return {"vectors": vectors, "seconds": round(time.monotonic() - begin, 1)}


async def left_body(server: RunningServer, count: int) -> float | None:
    """Seconds until the shard is idle after a client has left its body of many texts; None: it is not in a minute."""
    async with httpx.AsyncClient(base_url=server.url, timeout=2) as client:
        try:
            await client.post("/v1/embeddings", json=large(server.model, count))
        except httpx.ReadTimeout:
            left = time.monotonic()
        else:
            raise RuntimeError("a body of many texts was answered in two seconds: ask for more --texts")
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        while time.monotonic() < left + 60:
            if (
                await metric(client, "vllm:num_requests_running") + await metric(client, "vllm:num_requests_waiting")
                == 0
            ):
                return round(time.monotonic() - left, 2)
            await asyncio.sleep(0.25)
    return None


if __name__ == "__main__":
    main()
