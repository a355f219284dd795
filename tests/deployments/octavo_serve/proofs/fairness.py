"""Fair shares and deadlines, in simulated time and on a real server.

    python tests/deployments/octavo_serve/proofs/fairness.py                                     simulated: two minutes
    python tests/deployments/octavo_serve/proofs/fairness.py --serve configs/quickstart.yaml --seconds 60

Simulated are real schedulers, pools and routers over a profile of an 8B model on an H100 (`rehearsal/fleet.py`):

    neighbour  a tenant with prompts of 500 to 6,000 tokens, a twentieth of what a shard can do, alone and beside one
               that sends twenty times as much, more than fits: its p99 of the time to the first token at most 1.3 times
    weights    ten tenants with weights 1 to 4 who all send more than they get, on two shards: Jain's index of their
               seconds over their weights at least 0.95
    prefixes   eight tenants whose talks go on and on, fair beside fcfs: at least 0.95 of the hits, 0.98 of the tokens
    deadlines  twice of what a shard can do, with deadlines of 0.5 to 4 s: at least 99 % of those accepted are met, and
               tokens of answers in time are at least 95 % of what it does without deadlines and refusals

`--serve` asks the first model of a config, which is started with `scheduling_policy: fair` and two tenants with keys:
one client of the quiet tenant sends a request every two seconds, alone and then beside `--clients` of the noisy one.

The bounds that are broken come last but one, and the exit code is 1 then; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from running import RunningServer

from octavo.config import EngineConfig
from octavo.errors import DeadlineMissed
from octavo.rehearsal.fleet import Fleet, Trip
from octavo.rehearsal.simulated import load_profile
from octavo.request import Request, SamplingParams
from octavo.routing.admission import check_deadline
from octavo.routing.router import RoutingConfig

PROFILE = load_profile("llama-8b-h100")
VOCAB = 32_000
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", default="neighbour,weights,prefixes,deadlines")
    options.add_argument("--serve", type=Path, help="a config whose first model is asked, in place of the simulation")
    options.add_argument("--simulated", type=float, default=300.0, help="seconds of the neighbour")
    options.add_argument("--seconds", type=float, default=60.0, help="of each part on a server")
    options.add_argument("--clients", type=int, default=32, help="of the noisy tenant")
    options.add_argument("--words", type=int, default=100, help="of a prompt")
    options.add_argument("--tokens", type=int, default=32, help="of an answer")
    given = options.parse_args()
    found, broken = {}, []
    for part in ["served"] if given.serve else given.parts.split(","):
        begin = time.monotonic()
        found[part] = globals()[part](given)
        for name, (value, bound) in found[part].items():
            fits = value <= bound if bound >= 1 else value >= bound
            broken += [] if fits else [f"{part}: {name} {value:.3f}, bound {bound:g}"]
            print(f"{part:10} {name:42} {value:8.3f}   bound {bound:g}", flush=True)
        print(f"{part:10} took {time.monotonic() - begin:.0f} s", flush=True)
    print(*broken, sep="\n")
    print(json.dumps(found))
    sys.exit(1 if broken else 0)


# ---- simulated ------------------------------------------------------------------------------------------------------


def fleet(policy: str, shards: int = 1, **engine: Any) -> Fleet:
    settings = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "scheduling_policy": policy, **engine}
    return Fleet(PROFILE, shards, EngineConfig(**settings), RoutingConfig())


def words(seed: object, count: int) -> list[int]:
    drawn = random.Random(str(seed))
    return [drawn.randrange(VOCAB) for _ in range(count)]


def arrivals(rate: float, seconds: float, seed: object) -> Iterator[float]:
    drawn, at = random.Random(str(seed)), 0.0
    while (at := at + drawn.expovariate(rate)) < seconds:
        yield at


def send(where: Fleet, at: float, prompt: list[int], output: int, **settings: Any) -> None:
    """Send a request at a time, unless its deadline cannot be met."""
    params = SamplingParams(max_tokens=output, ignore_eos=True)
    name = f"{at}/{settings}/{len(prompt)}"
    request = Request(request_id=name, prompt_token_ids=prompt, params=params, **settings)
    where.at(at, lambda: _sent(where, request))


def _sent(where: Fleet, request: Request) -> None:
    where.send(request)


def stream(where: Fleet, tenant: str, rate: float, seconds: float, prompt: int, output: int, **settings: Any) -> None:
    for at in arrivals(rate, seconds, tenant):
        send(where, at, words(f"{tenant}{at}", prompt), output, tenant=tenant, **settings)


def first_tokens(where: Fleet, tenant: str) -> list[float]:
    trips = [trip for trip in where.trips.values() if trip.request.tenant == tenant]
    return sorted(trip.first_token - trip.sent for trip in trips if trip.first_token is not None)


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def neighbour(given: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """A quiet tenant alone, and beside a noisy one."""
    seconds, found = given.simulated, {}
    for policy, rate in (("fair", 0.0), ("fair", 30.0), ("fcfs", 30.0)):
        where = fleet(policy)
        for at in arrivals(0.3, seconds, "quiet"):
            send(where, at, words(at, random.Random(at).randrange(500, 6000)), 64, tenant="quiet")
        if rate:
            stream(where, "noisy", rate, seconds, 1000, 32)
        where.run(seconds)
        found[policy, rate] = first_tokens(where, "quiet")
    alone, beside = found["fair", 0.0], found["fair", 30.0]
    for name, waits in zip(("alone", "beside", "beside, fcfs"), found.values(), strict=True):
        print(f"{name}: p50 {percentile(waits, 0.5):.3f} p99 {percentile(waits, 0.99):.3f} s of {len(waits)}")
    return {"p99 to the first token, times alone": (percentile(beside, 0.99) / percentile(alone, 0.99), 1.3)}


def weights(_: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Ten tenants with weights, each with more than it gets."""
    seconds, where = 20.0, fleet("fair", shards=2)
    each = {f"t{number}": 1.0 + number % 4 for number in range(10)}
    for number, (tenant, weight) in enumerate(each.items()):
        stream(where, tenant, 30.0, seconds, 200 + 100 * (number % 5), 16 * (1 + number % 3), weight=weight)
    where.run(4.0)
    before = dict(where.served)
    where.run(seconds)
    shares = [(where.served[tenant] - before[tenant]) / weight for tenant, weight in each.items()]
    return {"Jain's index of seconds over weights": (sum(shares) ** 2 / len(shares) / sum(x * x for x in shares), 0.95)}


def prefixes(_: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Talks that go on: each turn has all of the one before in its prompt."""
    found = {}
    for policy in ("fcfs", "fair"):
        where = fleet(policy, shards=2, kv_cache_bytes=int(1e5) * PROFILE.kv_bytes_per_token)
        for number in range(8):
            for at in arrivals(2.0 + number / 2, 12.0, number):
                _talk(where, f"t{number}", at)
        where.run()
        trips = list(where.trips.values())
        prompts = sum(len(trip.request.prompt_token_ids) for trip in trips)
        found[policy] = sum(trip.cached for trip in trips) / prompts, prompts / where.now
    hits, tokens = (fair / fcfs for fair, fcfs in zip(found["fair"], found["fcfs"], strict=True))
    print(f"hits {found['fcfs'][0]:.3f} with fcfs, {found['fair'][0]:.3f} with fair")
    return {"hits, of fcfs": (hits, 0.95), "tokens per second, of fcfs": (tokens, 0.98)}


def _talk(where: Fleet, tenant: str, at: float) -> None:
    begin = words(tenant, 800)
    for turn in range(4):
        begin = begin + words(f"{tenant}/{at}/{turn}", 300)
        send(where, at + 3.0 * turn, begin, 40, tenant=tenant)


def deadlines(_: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Twice of what a shard can do."""
    seconds = 30.0
    full = fleet("priority")
    stream(full, "", 80.0, seconds, 500, 32)
    full.run(seconds)
    capacity = sum(trip.finished is not None for trip in full.trips.values()) / seconds
    where, refused = _Strict("fair"), 0
    for at in arrivals(2 * capacity, seconds, "deadlines"):
        deadline = random.Random(at).uniform(0.5, 4.0)
        send(where, at, words(at, 500), 32, tenant=str(int(at * 1e6) % 4), deadline=deadline)
    where.run()
    refused, trips = where.refused, list(where.trips.values())
    met = [trip for trip in trips if _met(trip)]
    print(f"capacity {capacity:.1f} requests a second; {len(trips)} accepted, {refused} refused")
    in_time = sum(trip.finished is not None and trip.finished <= seconds for trip in met)
    return {
        "accepted deadlines that were met": (len(met) / len(trips), 0.99),
        "answers in time, of the capacity": (in_time / seconds / capacity, 0.95),
    }


def _met(trip: Trip) -> bool:
    assert trip.request.deadline is not None
    return trip.first_token is not None and trip.first_token - trip.sent <= trip.request.deadline


class _Strict(Fleet):
    """A fleet whose gateway refuses what cannot be in time, as `gateway/picker.py` does."""

    def __init__(self, policy: str) -> None:
        made = fleet(policy)
        super().__init__(made.profile, 1, made.config, made.routing)
        self.refused = 0

    def send(self, request: Request) -> Trip:
        """Route a request; one that cannot be in time goes no further."""
        trip = super().send(request)
        assert request.deadline is not None
        try:
            check_deadline(trip.choice.score.first_token, request.deadline)
        except DeadlineMissed:
            self.refused += 1
            self.routers[0].completed(request.request_id, ran=False)
            del self.trips[request.request_id]
        return trip

    def _receive(self, shard: Any, request: Request) -> None:
        if request.request_id in self.trips:
            super()._receive(shard, request)


# ---- a real server --------------------------------------------------------------------------------------------------

KEYS = {"quiet": "quiet-key", "noisy": "noisy-key"}


def served(given: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """A client of a quiet tenant on a server, alone and beside those of a noisy one."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(shared(yaml.safe_load(given.serve.read_text()))))
        with RunningServer(config, None) as server:
            alone, beside = asyncio.run(_clients(server.url, server.model, given))
    for name, waits in (("alone", alone), ("beside", beside)):
        print(f"{name}: p50 {percentile(waits, 0.5):.3f} p99 {percentile(waits, 0.99):.3f} s of {len(waits)}")
    return {"p99 to the first token, times alone": (percentile(beside, 0.99) / percentile(alone, 0.99), 1.3)}


def shared(document: dict[str, Any]) -> dict[str, Any]:
    """A config with fair shares and a key for each tenant."""
    settings = document["applications"][0]["args"]
    settings["models"][0].setdefault("engine", {})["scheduling_policy"] = "fair"
    settings["api_keys"] = [{"name": name, "key": key} for name, key in KEYS.items()]
    return document


async def _clients(url: str, model: str, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    numbers = itertools.count()

    async def ask(tenant: str) -> float:
        text = " ".join(random.Random(next(numbers)).choices(WORDS, k=given.words))
        body = {"model": model, "prompt": text, "max_tokens": given.tokens, "ignore_eos": True, "stream": True}
        begin, first = time.perf_counter(), None
        headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
        async with client.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                first = first or (time.perf_counter() - begin if line.startswith("data: {") else None)
        assert first is not None
        return first

    async def watch() -> list[float]:
        waits, end = [], time.monotonic() + given.seconds
        while time.monotonic() < end:
            waits.append(await ask("quiet"))
            await asyncio.sleep(2.0)
        return sorted(waits)

    async def flood() -> None:
        while True:
            await ask("noisy")

    async with httpx.AsyncClient(timeout=600.0, limits=httpx.Limits(max_connections=None)) as client:
        await ask("quiet")
        alone = await watch()
        noise = [asyncio.create_task(flood()) for _ in range(given.clients)]
        await asyncio.sleep(5.0)
        beside = await watch()
        for task in noise:
            task.cancel()
        await asyncio.gather(*noise, return_exceptions=True)
    return alone, beside


if __name__ == "__main__":
    main()
