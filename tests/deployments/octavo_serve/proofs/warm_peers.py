"""A burst that makes a second shard come: it begins cold, or with what is hot at the first one.

    python tests/deployments/octavo_serve/proofs/warm_peers.py configs/quickstart.yaml                # 15 minutes
    python tests/deployments/octavo_serve/proofs/warm_peers.py configs/quickstart.yaml --rounds 1     # 5 minutes

Serves CONFIG's first model on one shard of one thread, and up to two, in turns without `share_kv_cache` (cold) and with
it (warm); each time a new server. Each of `--systems` system prompts of `--system` tokens is asked for, in growing
pieces and with pauses, so that the autoscaler sees no need. Then requests come for `--seconds`, `--load` times as many
as the first shard does one after the other (`--rate` a second where that is given; else it is measured in the first
round), each with one of these prompts and `--question` tokens of its own, the same ones at the same times, and the
autoscaler adds a shard.

Told are first tokens of the requests that came within a minute from when the second shard was there, and of those
before; what those of the minute waited for on average, by what `/v1/requests/{id}/explain` says of each; by
which shard they were answered, and how many blocks were fetched. Exit code 1 if a request failed, a token differs
between any two rounds, no second shard came, or the 90th percentile cold is not 1.5 times the one warm. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from running import RunningServer, metric, parser

BETTER = 1.5
MINUTE = 60.0
PIECE = 250
"""Tokens by which a system prompt grows."""
PAUSE = 3.0
"""Of the time that a piece took."""
SCALED = {"min": 1, "max": 2, "warm": 1, "ttft": 4, "drain_within": 4, "utilization": 1.0, "down_after": 600}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--systems", type=int, default=6)
    options.add_argument("--system", type=int, default=2000, help="tokens of a system prompt")
    options.add_argument("--question", type=int, default=40, help="tokens after it")
    options.add_argument("--answer", type=int, default=16, help="tokens")
    options.add_argument("--load", type=float, default=2.0, help="of what one shard does, one request after the other")
    options.add_argument("--rate", type=float, help="requests a second")
    options.add_argument("--seconds", type=float, default=75.0)
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="oct"))
    rounds: dict[str, list[Round]] = {"cold": [], "warm": []}
    try:
        for number in range(2 * given.rounds):
            name = ("cold", "warm")[(number + number // 2) % 2]  # which of them is first changes
            with RunningServer(write(given, folder, name == "warm"), given.port) as server:
                rounds[name].append(asyncio.run(one_round(server, given)))
            print(name, json.dumps(told(rounds[name][-1:])), flush=True)
    finally:
        shutil.rmtree(folder)
    result = {name: told(found) for name, found in rounds.items()}
    wrong = complaints(rounds, result)
    print(json.dumps(result | {"complaints": wrong}))
    sys.exit(1 if wrong else 0)


def write(given: argparse.Namespace, folder: Path, shares: bool) -> Path:
    """The config's first model on one shard or two, of one thread each."""
    document = yaml.safe_load(given.config.read_text())
    args = document["applications"][0]["args"]
    (model, *_) = args["models"]
    model |= {"replicas": SCALED, "max_queue_s": 300}
    model.setdefault("engine", {}).update(threads=1, share_kv_cache=shares, kv_cache_bytes=2**31)
    args["models"] = [model]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@dataclass(slots=True)
class Answer:
    """One request: when it was sent, when its first token came, by whom it was answered, and what it said."""

    sent: float
    first: float = float("inf")
    shard: str = ""
    id: str = ""
    text: str = ""
    error: str = ""


@dataclass(slots=True)
class Round:
    """What came of a burst.

    Attributes:
        fetched: blocks.
        second: when the second shard was there; inf where it did not come.
        waited: seconds before first tokens, by what they were for.
    """

    answers: list[Answer]
    fetched: float
    second: float
    waited: dict[str, float]

    def after(self) -> list[Answer]:
        """Those who came within a minute after the second shard."""
        return [each for each in self.answers if self.second <= each.sent < self.second + MINUTE]

    def waits(self) -> tuple[list[float], list[float]]:
        """Seconds to the first tokens of those who came before the second shard answered, and in the minute after."""
        before = [each.first - each.sent for each in self.answers if each.sent < self.second]
        return before, [each.first - each.sent for each in self.after()]


def tokens(name: str, count: int) -> list[int]:
    """Token ids of no text."""
    rng = random.Random(name)
    return [rng.randrange(1000, 40000) for _ in range(count)]


async def one_round(server: RunningServer, given: argparse.Namespace) -> Round:
    """The same requests at the same times."""
    systems = [tokens(f"system {number}", given.system) for number in range(given.systems)]
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
        for system in systems:
            for end in range(PIECE, given.system + PIECE, PIECE):
                await asyncio.sleep(PAUSE * await ask_alone(http, server.model, system[:end], 1))
        times = [
            await ask_alone(http, server.model, each + tokens("?", given.question), given.answer) for each in systems
        ]
        given.rate = given.rate or given.load * len(times) / sum(times)
        begun = time.perf_counter()
        asked = []
        for number in range(int(given.rate * given.seconds)):
            prompt = systems[random.Random(number).randrange(given.systems)] + tokens(f"{number}", given.question)
            asked.append(
                asyncio.create_task(ask(http, server.model, prompt, given.answer, begun + number / given.rate))
            )
        looking = asyncio.create_task(second_shard(http))
        answers = await asyncio.gather(*asked)
        second = looking.result() if looking.done() else float("inf")
        looking.cancel()
        found = Round(answers, await metric(http, "octavo_peer_blocks_read_total"), second, {})
        found.waited = await explained(http, found.after())
        return found


async def second_shard(http: httpx.AsyncClient) -> float:
    """When it was there."""
    while await metric(http, "octavo_shards") < 2:
        await asyncio.sleep(0.2)
    return time.perf_counter()


async def ask_alone(http: httpx.AsyncClient, model: str, prompt: list[int], answer: int) -> float:
    """Seconds that a request takes."""
    begun = time.perf_counter()
    await ask(http, model, prompt, answer, 0.0)
    return time.perf_counter() - begun


async def explained(http: httpx.AsyncClient, answers: list[Answer]) -> dict[str, float]:
    """Seconds before the first token, by what they went to, on average."""
    found = Counter[str]()
    for each in answers:
        if each.error:  # which is told of otherwise
            continue
        said = (await http.get(f"/v1/requests/{each.id}/explain")).json()
        for span in said["prompts"][0]["spans"]:
            before = min(span["at"] + span["seconds"], said["first_token"] or 0.0) - span["at"]
            found[f"{span['what']} {span['cause']}".strip()] += max(0.0, before) / len(answers)
    return dict(found)


async def ask(http: httpx.AsyncClient, model: str, prompt: list[int], answer: int, at: float) -> Answer:
    """One streamed request, when its time has come."""
    await asyncio.sleep(at - time.perf_counter())
    found = Answer(time.perf_counter())
    body = {"model": model, "prompt": prompt, "max_tokens": answer, "temperature": 0, "ignore_eos": True}
    try:
        async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            found.shard = stream.headers.get("x-octavo-shard", "")
            if stream.status_code != 200:
                found.error = f"{stream.status_code} {(await stream.aread()).decode():.200}"
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    found.first = min(found.first, time.perf_counter())
                    found.id = event.get("id", found.id)
                    found.error = str(event.get("error", found.error))
                    found.text += "".join(choice["text"] for choice in event.get("choices", ()))
    except httpx.HTTPError as error:
        found.error = repr(error)
    return found


def told(rounds: list[Round]) -> dict[str, Any]:
    """First tokens in milliseconds, over rounds."""
    both = [each.waits() for each in rounds]
    shards = Counter[str]()
    for each in rounds:
        shards.update("first" if a.shard == each.answers[0].shard else "second" for a in each.answers)
    return {
        "before_ms": quantiles([wait for before, _ in both for wait in before]),
        "first_minute_ms": quantiles([wait for _, after in both for wait in after]),
        "second_came_s": [round(each.second - each.answers[0].sent, 1) for each in rounds],
        "waited_ms": {
            what: round(1000 * sum(each.waited.get(what, 0.0) for each in rounds) / len(rounds), 1)
            for what in sorted({what for each in rounds for what in each.waited})
        },
        "rate": [round(len(each.answers) / (each.answers[-1].sent - each.answers[0].sent), 2) for each in rounds],
        "answers": dict(shards),
        "blocks_fetched": sum(each.fetched for each in rounds),
    }


def complaints(rounds: dict[str, list[Round]], result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    every = [each for found in rounds.values() for each in found]
    failed = {answer.error for each in every for answer in each.answers if answer.error}
    p90 = {name: found["first_minute_ms"][1] for name, found in result.items()}
    wrong = {
        f"requests failed: {sorted(failed)[:3]}": bool(failed),
        "a token differs between two rounds": any(
            [a.text for a in each.answers] != [a.text for a in every[0].answers] for each in every
        ),
        "no second shard came": any(each.second == float("inf") for each in every),
        f"first tokens, p90: {p90}": p90["cold"] < BETTER * p90["warm"],
    }
    return [what for what, is_so in wrong.items() if is_so]


def quantiles(seconds: list[float]) -> list[float]:
    """Median, 90th percentile and maximum, in milliseconds, and how many there are."""
    if not seconds:
        return [0.0, 0.0, 0.0, 0]
    return [*(round(1000 * float(np.quantile(seconds, share)), 1) for share in (0.5, 0.9, 1)), len(seconds)]


if __name__ == "__main__":
    main()
