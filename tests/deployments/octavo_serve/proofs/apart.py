"""Long prompts beside streams on two shards: each computed where it is sent, and apart from the streams.

    python tests/deployments/octavo_serve/proofs/apart.py configs/quickstart.yaml                  # 22 minutes
    python tests/deployments/octavo_serve/proofs/apart.py configs/quickstart.yaml --rounds 1       # 11 minutes

Serves CONFIG's first model on two shards of one thread that share their caches, in turns with `router.apart_weight` 0
(together), the same with `--short` as `target_itl` (short: smaller pieces of prompts beside streams), and `--weight`
(apart); each time a new server, the same requests at the same times: a stream every `--every` seconds, and a prompt of
`--prompt` tokens every `--period` seconds once `--settle` seconds have passed. Roles are learned from what comes, so
the first `--learn` prompts are told of apart from the rest.

A prompt of 8,000 tokens takes one thread 20 to 40 s, half of them attention, so that a shorter `--period` is more than
two shards can do; and streams that last less than a prompt are sent past it anyhow, together as well as apart.

Told are the gaps between two tokens of the streams while a long prompt has come and has no first token, first tokens of
both kinds, decisions by reason, where prompts and streams ran, and blocks that went from shard to shard. Exit code 1 if
a request failed, a token differs between any two rounds, prompts' first tokens come later apart, or the 99th percentile
of the gaps is more than half of the better one together. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from running import RunningServer, metric, parser

HALF = 0.5
ROUTED = re.compile(r'octavo_routed_requests_total\{.*reason="(\w+)".*\} (\S+)')
PEERS = ("octavo_peer_blocks_wanted_total", "octavo_peer_blocks_read_total", "octavo_peer_failures_total")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--weight", type=float, default=1.0, help="apart_weight")
    options.add_argument("--prompt", type=int, default=8000, help="tokens of a long prompt")
    options.add_argument("--prompts", type=int, default=3)
    options.add_argument("--learn", type=int, default=1, help="of them, that are told of apart")
    options.add_argument("--period", type=float, default=45.0)
    options.add_argument("--settle", type=float, default=12.0)
    options.add_argument("--every", type=float, default=1.2)
    options.add_argument("--answer", type=int, default=300, help="tokens of a stream")
    options.add_argument("--ways", default="together,short,apart", help="those that are compared")
    options.add_argument("--short", type=float, default=0.035, help="target_itl of the second way")
    options.add_argument("--log", action="store_true", help="the router's decisions, in the server's log")
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="oct"))
    rounds: dict[str, list[Round]] = {name: [] for name in given.ways.split(",")}
    try:
        for number in range(given.rounds):
            for name in list(rounds)[:: 1 - number % 2 * 2]:  # forward, then backward
                with RunningServer(write(given, folder, name), given.port) as server:
                    rounds[name].append(asyncio.run(one_round(server, given)))
                print(name, json.dumps(told(rounds[name][-1:], given)), flush=True)
    finally:
        shutil.rmtree(folder)
    result = {name: told(found, given) for name, found in rounds.items()}
    wrong = complaints(rounds, result)
    print(json.dumps(result | {"complaints": wrong}))
    sys.exit(1 if wrong else 0)


def write(given: argparse.Namespace, folder: Path, name: str) -> Path:
    """The config's first model on two shards of one thread that share their caches."""
    document = yaml.safe_load(given.config.read_text())
    args = document["applications"][0]["args"]
    (model, *_) = args["models"]
    args["models"] = [model | {"replicas": 2}]
    args["router"] = {"apart_weight": given.weight if name == "apart" else 0.0, "log_decisions": given.log}
    engine = model.setdefault("engine", {})
    engine |= {"threads": 1, "share_kv_cache": True, "kv_cache_bytes": 2**31}
    if name == "short":
        engine["target_itl"] = given.short
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@dataclass(slots=True)
class Answer:
    """One request: when it was sent, when its events came, what they said."""

    long: bool
    sent: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    error: str = ""
    shard: str = ""

    @property
    def first_token(self) -> float:
        return self.times[0] - self.sent if self.times else float("inf")


@dataclass(slots=True)
class Round:
    answers: dict[str, Answer]
    reasons: Counter[str]
    peers: dict[str, float]

    def gaps(self, prompts: Sequence[Answer]) -> list[float]:
        """Of the streams, between two events, that touch the time in which one of these prompts was computed."""
        spans = [(each.sent, each.times[0]) for each in prompts if each.times]
        found = []
        for answer in self.answers.values():
            for begin, end in zip(answer.times, answer.times[1:], strict=False):
                if not answer.long and any(begin < to and end > since for since, to in spans):
                    found.append(end - begin)
        return found


async def one_round(server: RunningServer, given: argparse.Namespace) -> Round:
    """The same requests at the same times."""
    seconds = given.settle + given.prompts * given.period
    plan = [(number * given.every, f"s{number}", 40, given.answer) for number in range(int(seconds / given.every))]
    plan += [(given.settle + n * given.period, f"p{n}", given.prompt, 32) for n in range(given.prompts)]
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as http:
        begun = time.perf_counter()
        asked = [asyncio.create_task(ask(http, server.model, begun, *each)) for each in plan]
        answers = dict(await asyncio.gather(*asked))
        peers = {name: await metric(http, name) for name in PEERS}
        lines = (await http.get("/metrics")).text
    reasons = Counter[str]()
    for reason, count in ROUTED.findall(lines):
        reasons[reason] += int(float(count))
    return Round(answers, reasons, peers)


async def ask(
    http: httpx.AsyncClient, model: str, begun: float, at: float, name: str, prompt: int, answer: int
) -> tuple[str, Answer]:
    """One streamed request, when its time has come."""
    await asyncio.sleep(begun + at - time.perf_counter())
    rng = random.Random(name)
    found = Answer(name.startswith("p"), time.perf_counter())
    body = {
        "model": model, "prompt": [rng.randrange(1000, 40000) for _ in range(prompt)], "max_tokens": answer,
        "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    try:
        async with http.stream("POST", "/v1/completions", json=body) as stream:
            found.shard = stream.headers.get("x-octavo-shard", "")
            if stream.status_code != 200:
                found.error = (await stream.aread()).decode()
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    found.times.append(time.perf_counter())
                    found.error = str(event.get("error", ""))
                    found.text += "".join(choice["text"] for choice in event.get("choices", ()))
    except httpx.HTTPError as error:
        found.error = repr(error)
    return name, found


def told(rounds: list[Round], given: argparse.Namespace) -> dict[str, Any]:
    """Gaps and first tokens in milliseconds, over rounds."""
    gaps: dict[str, list[float]] = {"beside": [], "learning": []}
    firsts: dict[str, list[float]] = {"stream": [], "prompt": []}
    for each in rounds:
        prompts = [each.answers[f"p{number}"] for number in range(given.prompts)]
        gaps["learning"] += each.gaps(prompts[: given.learn])
        gaps["beside"] += each.gaps(prompts[given.learn :])
        for answer in each.answers.values():
            firsts["prompt" if answer.long else "stream"].append(answer.first_token)
    return {
        "gaps_ms": {name: quantiles(found) for name, found in gaps.items()},
        "first_token_ms": {name: quantiles(found) for name, found in firsts.items()},
        "reasons": dict(sum((each.reasons for each in rounds), Counter[str]())),
        "shards": [
            Counter(f"{'prompt' if it.long else 'stream'} {it.shard}" for it in each.answers.values())
            for each in rounds
        ],
        "peers": {name: sum(each.peers[name] for each in rounds) for name in PEERS},
    }


def complaints(rounds: dict[str, list[Round]], result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    every = [each for found in rounds.values() for each in found]
    failed = {f"{name}: {a.error}" for each in every for name, a in each.answers.items() if a.error or not a.text}
    texts: dict[str, set[str]] = {}
    for name, answer in (pair for each in every for pair in each.answers.items() if not pair[1].error):
        texts.setdefault(name, set()).add(answer.text)
    p99 = {name: found["gaps_ms"]["beside"][1] for name, found in result.items()}
    first = {name: found["first_token_ms"]["prompt"][0] for name, found in result.items()}
    together = [name for name in rounds if name != "apart"]
    wrong = {
        f"requests failed: {sorted(failed)[:3]}": bool(failed),
        "a token differs between two rounds": any(len(said) > 1 for said in texts.values()),
        f"first tokens of prompts, p50: {first}": first["apart"] > 1.05 * min(first[name] for name in together),
        f"gaps beside prompts, p99: {p99}": p99["apart"] > HALF * min(p99[name] for name in together),
    }
    return [what for what, is_so in wrong.items() if is_so]


def quantiles(seconds: list[float]) -> list[float]:
    """Median, 99th percentile and maximum, in milliseconds, and how many there are."""
    if not seconds:
        return [0.0, 0.0, 0.0, 0]
    return [*(round(1000 * float(np.quantile(seconds, share)), 1) for share in (0.5, 0.99, 1)), len(seconds)]


if __name__ == "__main__":
    main()
