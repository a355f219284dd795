"""A batch beside people who stream: they do not feel it, it takes what they leave, and no kill -9 costs it a line.

    python tests/deployments/octavo_serve/proofs/batches.py configs/rehearsal.yaml --lines 10000 --kills 20
    python tests/deployments/octavo_serve/proofs/batches.py configs/quickstart.yaml --lines 300 --kills 6 --rate 0.5

Serves CONFIG with a folder for batches and two gateways. Four runs:

    alone       people who stream, `--rate` of them a second for `--seconds`, always the same ones at the same times
    capacity    a batch and nobody else: lines per second
    beside      the same people, and a batch that does not end meanwhile
    killed      a batch of `--lines` beside people, while a random shard, gateway, or every process of the server is
                killed `--kills` times, `--pause` seconds apart; after the last kind the server is started again

Told are the 99th percentiles of the first token and of the time between two tokens, beside over alone; lines per second
beside over what is left of the capacity, where people took the part of time in which a shard had any of theirs; and how
often each line of the killed batch was answered. Exit code 1 if a line was not answered once, or a bar was missed. The
last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from running import RunningServer, metric, parser

URL = "/v1/chat/completions"
BARS = {"first_token": 1.1, "each_token": 1.05, "idle": 0.9}
KILLS = ("shard", "shard", "gateway", "everything")


def main() -> None:
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="octavo-batches-"))
    options.config = with_batches(options, folder)
    result = measured(options) if options.seconds else {}
    result |= killed(options) if options.kills else {}
    print(json.dumps(result))
    sys.exit(1 if result.get("missed") or result.get("wrong") else 0)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--lines", type=int, default=10_000, help="of the batch beside which everything is killed")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--pause", type=float, default=5.0)
    options.add_argument("--seconds", type=float, default=60.0, help="of each measured run; 0: only kill")
    options.add_argument("--rate", type=float, default=2.0, help="people who begin to stream, per second")
    options.add_argument("--words", type=int, default=200, help="of a prompt")
    options.add_argument("--tokens", type=int, default=32, help="of an answer")
    options.add_argument("--gateways", type=int, default=2)
    options.add_argument("--lines-per-second", type=float, help="that all gateways begin at most")
    options.add_argument("--shards", type=int, help="in place of the config's")
    options.add_argument("--speed", type=float, help="of a rehearsal's shards, in place of 1")
    return options.parse_args()


def with_batches(options: argparse.Namespace, folder: Path) -> Path:
    """The config with a folder for batches."""
    config = yaml.safe_load(options.config.read_text())
    gateway = config["applications"][0]["args"].setdefault("gateway", {})
    batches = {"folder": str(folder / "store"), "lines_per_second": options.lines_per_second}
    gateway |= {"replicas": options.gateways, "batches": batches}
    model = config["applications"][0]["args"]["models"][0]
    if options.shards:
        model["replicas"] = options.shards
    if options.speed:
        model["engine"]["rehearsal_speed"] = options.speed
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# ── people ──


class People:
    """Who streams: seconds to the first token and between two, as they come."""

    def __init__(self, url: str, model: str, options: argparse.Namespace) -> None:
        self._url, self._model, self._options = url, model, options
        self.first: list[float] = []
        self.each: list[float] = []
        self.failed = 0

    async def come(self, seconds: float) -> None:
        chance = random.Random(self._options.seed)
        async with httpx.AsyncClient(base_url=self._url, timeout=600) as client, asyncio.TaskGroup() as group:
            begin, at = time.monotonic(), 0.0
            while (at := at + chance.expovariate(self._options.rate)) < seconds:
                await asyncio.sleep(begin + at - time.monotonic())
                group.create_task(self._stream(client, chance.random()))

    async def _stream(self, client: httpx.AsyncClient, number: float) -> None:
        text = " ".join([f"person {number}", *["word"] * self._options.words])
        body = asked(self._model, text, self._options.tokens) | {"stream": True}
        last = begin = time.monotonic()
        try:
            async with client.stream("POST", URL, json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if '"content":"' in line and '"content":""' not in line:
                        now = time.monotonic()
                        (self.first if last == begin else self.each).append(now - last)
                        last = now
        except httpx.HTTPError:
            self.failed += 1


def asked(model: str, text: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


def high(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[int(0.99 * len(values))] if values else float("nan")


# ── batches ──


async def begin(client: openai.AsyncOpenAI, model: str, count: int, options: argparse.Namespace) -> str:
    """Begin a batch of so many lines, of which those of a topic share the beginning of their prompts."""
    chance = random.Random(options.seed)
    lines = []
    for number in range(count):
        text = " ".join([f"topic {chance.randrange(50)}", *["word"] * options.words, f"question {number}"])
        body = asked(model, text, options.tokens)
        lines.append(json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": URL, "body": body}))
    file = await client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    return batch.id


async def done(client: openai.AsyncOpenAI, batch: str) -> int:
    counts = (await client.batches.retrieve(batch)).request_counts
    return counts.completed if counts else 0


async def until_begun(client: openai.AsyncOpenAI, batch: str) -> None:
    while not await done(client, batch):
        await asyncio.sleep(0.2)


def api(server: RunningServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20)


# ── the measured runs ──


def measured(options: argparse.Namespace) -> dict[str, Any]:
    with RunningServer(options.config, options.port) as server:
        return asyncio.run(measure(server, options))


async def measure(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    async with api(server) as client, httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        await People(server.url, server.model, options).come(5)  # warm
        busy, cpu = await metric(http, "octavo_shard_step_seconds_total"), [processor(server)]
        alone = People(server.url, server.model, options)
        await alone.come(options.seconds)
        shards = len(server.shards())
        busy = (await metric(http, "octavo_shard_step_seconds_total") - busy) / options.seconds / shards
        cpu.append(processor(server))
        batch = await begin(client, server.model, 50_000, options)
        await until_begun(client, batch)
        capacity = await rate(client, batch, options.seconds / 2)
        beside = People(server.url, server.model, options)
        before = await done(client, batch)
        cpu.append(processor(server))
        await beside.come(options.seconds)
        cpu.append(processor(server))
        lines = (await done(client, batch) - before) / options.seconds
        await client.batches.cancel(batch)
    result = {
        "people": {"alone": len(alone.first), "beside": len(beside.first), "failed": alone.failed + beside.failed},
        "first_token_p99_ms": [round(1000 * high(one.first)) for one in (alone, beside)],
        "each_token_p99_ms": [round(1000 * high(one.each), 1) for one in (alone, beside)],
        "busy": round(busy, 3),
        "cores": [
            {who: round((b[who] - a[who]) / options.seconds, 2) for who in b}
            for a, b in zip(cpu[::2], cpu[1::2], strict=True)
        ],
        "lines_per_second": {"capacity": round(capacity, 2), "beside": round(lines, 2)},
        "first_token": round(high(beside.first) / high(alone.first), 3),
        "each_token": round(high(beside.each) / high(alone.each), 3),
        "idle": round(lines / max(1e-9, capacity * (1 - busy)), 3),
    }
    found = [name for name in ("first_token", "each_token") if result[name] > BARS[name]]
    result["missed"] = found + ["idle"] * (result["idle"] < BARS["idle"])
    print(json.dumps(result), flush=True)
    return result


def processor(server: RunningServer) -> Counter[str]:
    """Seconds of CPU so far, by whose they are."""
    found = Counter[str](clients=time.process_time())
    for pid, name in server.replicas():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[name.partition("-")[0].partition(".")[0]] += (int(fields[11]) + int(fields[12])) / os.sysconf(
            "SC_CLK_TCK"
        )
    return found


async def rate(client: openai.AsyncOpenAI, batch: str, seconds: float) -> float:
    """Lines per second."""
    before, start = await done(client, batch), time.monotonic()
    await asyncio.sleep(seconds)
    return (await done(client, batch) - before) / (time.monotonic() - start)


# ── kills ──


def killed(options: argparse.Namespace) -> dict[str, Any]:
    chance, kills, batch = random.Random(options.seed), Counter[str](), ""
    start = time.monotonic()
    while kills.total() < options.kills or not kills:
        with RunningServer(options.config, options.port) as server:
            batch = asyncio.run(kill(server, options, chance, kills, batch))
    with RunningServer(options.config, options.port) as server:
        answered = asyncio.run(answers(server, batch))
    names = {f"line-{number}" for number in range(options.lines)}
    wrong = {name: answered[name] for name in names | answered.keys() if answered[name] != 1 or name not in names}
    seconds = round(time.monotonic() - start)
    return {"kills": dict(kills), "lines": options.lines, "wrong": dict(list(wrong.items())[:20]), "seconds": seconds}


async def kill(
    server: RunningServer, options: argparse.Namespace, chance: random.Random, kills: Counter[str], batch: str
) -> str:
    """Kill until everything was, or often enough; returns the batch."""
    async with api(server) as client:
        batch = batch or await begin(client, server.model, options.lines, options)
        people = asyncio.create_task(People(server.url, server.model, options).come(10**6))
        try:
            while kills.total() < options.kills:
                await asyncio.sleep(chance.uniform(0.5, 1.5) * options.pause)
                kind = chance.choice(KILLS)
                kills[kind] += 1
                print(f"kill {kills.total()}: {kind}, {await done(client, batch)} lines are done", flush=True)
                victims = victims_of(server, kind)
                for pid in victims if kind == "everything" else [chance.choice(victims)] if victims else []:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if kind == "everything":
                    break
        finally:
            people.cancel()
            await asyncio.gather(people, return_exceptions=True)
    return batch


def victims_of(server: RunningServer, kind: str) -> list[int]:
    if kind == "everything":
        return server.processes()
    return [pid for pid, name in server.replicas() if name.startswith("shard-") == (kind == "shard")]


async def answers(server: RunningServer, batch_id: str) -> Counter[str]:
    """How often each line was answered, once the batch has ended."""
    async with api(server) as client:
        while (batch := await client.batches.retrieve(batch_id)).status != "completed":
            await asyncio.sleep(1)
        found = Counter[str]()
        for file in (batch.output_file_id, batch.error_file_id):
            text = (await client.files.content(file)).text if file else ""
            found.update(json.loads(line)["custom_id"] for line in text.splitlines())
            if file == batch.error_file_id and text:
                print("an error:", text.splitlines()[0], flush=True)
        return found


if __name__ == "__main__":
    main()
