"""A batch beside people who stream: they do not feel it, it takes what they leave, and no kill -9 costs it a line.

    python tests/deployments/octavo_serve/proofs/batches.py configs/rehearsal.yaml --kills 0 --rate 5 --turns 3
    python tests/deployments/octavo_serve/proofs/batches.py configs/rehearsal.yaml --lines 10000 --kills 20
    python tests/deployments/octavo_serve/proofs/batches.py configs/quickstart.yaml --lines 300 --kills 6 --rate 0.5

Serves CONFIG with a folder for batches and two gateways. First come the capacity and `--turns` of two runs:

    capacity    a batch and nobody else: lines per second
    alone       people who stream, `--rate` of them a second for `--seconds`; other ones in each turn
    beside      the same people at the same times, and a batch that does not end meanwhile
    killed      a batch of `--lines` beside people, while a random shard, gateway, or every process of the server is
                killed `--kills` times, `--pause` seconds apart; after the last kind the server is started again

Told are the 99th percentiles of the first token and of the time between two tokens of all turns, beside over alone,
with the medians; lines per second beside over what is left of the capacity, where people took the part of time in which
a shard had any of theirs; and how often each line of the killed batch was answered. `explained` says where first tokens
spent their time on average by their requests' own explanations, alone and beside: what is not the server's is the rest
(`unexplained`). Exit code 1 if a line was not answered once, or a bar was missed. The last line of the output is JSON.
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
    options.add_argument("--seconds", type=float, default=40.0, help="of each measured run; 0: only kill")
    options.add_argument("--turns", type=int, default=2, help="of people alone and beside a batch")
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
        self._url, self._model, self.options = url, model, options
        self.first: list[float] = []
        self.each: list[float] = []
        self.failed = 0
        self.ids: list[str] = []
        self.explained = Counter[str]()
        self.told = 0  # of how many requests
        self.cpu = Counter[str]()

    async def come(self, seconds: float, turn: int = 0) -> None:
        chance = random.Random(self.options.seed + turn)
        async with httpx.AsyncClient(base_url=self._url, timeout=600) as client, asyncio.TaskGroup() as group:
            begin, at = time.monotonic(), 0.0
            while (at := at + chance.expovariate(self.options.rate)) < seconds:
                await asyncio.sleep(begin + at - time.monotonic())
                group.create_task(self._stream(client, chance.random()))

    async def _stream(self, client: httpx.AsyncClient, number: float) -> None:
        text = " ".join([f"person {number}", *["word"] * self.options.words])
        body = asked(self._model, text, self.options.tokens) | {"stream": True}
        last = begin = time.monotonic()
        try:
            async with client.stream("POST", URL, json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if '"content":"' in line and '"content":""' not in line:
                        now = time.monotonic()
                        if last == begin:
                            self.ids.append(json.loads(line.removeprefix("data: "))["id"])
                        (self.first if last == begin else self.each).append(now - last)
                        last = now
        except httpx.HTTPError:
            self.failed += 1

    async def explain(self, client: httpx.AsyncClient) -> None:
        """Add up where first tokens spent their time."""
        ids, self.ids = self.ids, []
        for name in ids:
            for _ in range(2 * self.options.gateways):  # one of them knows it
                answer = await client.get(f"/v1/requests/{name}/explain")
                if answer.status_code == 200:
                    break
            for span in answer.json()["prompts"][0]["spans"] if answer.status_code == 200 else ():
                if span["what"] == "decode":
                    break
                self.explained[f"{span['what']} {span['cause'] or ''}".strip()] += span["seconds"]
            self.told += answer.status_code == 200

    @property
    def parts_ms(self) -> dict[str, float]:
        """Milliseconds of a first token, on average, by where they went."""
        each = {name: 1000 * seconds / max(1, self.told) for name, seconds in self.explained.items()}
        each["unexplained"] = 1000 * sum(self.first) / len(self.first) - sum(each.values())
        return {name: round(ms, 2) for name, ms in each.items() if ms >= 0.01}


def asked(model: str, text: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


def high(values: list[float], share: float = 0.99) -> float:
    """The 99th percentile, or another."""
    return sorted(values)[int(share * len(values))] if values else float("nan")


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
    return await begin_again(client, file.id)


async def begin_again(client: openai.AsyncOpenAI, file: str) -> str:
    return (await client.batches.create(input_file_id=file, endpoint=URL, completion_window="24h")).id


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
        batch = await begin(client, server.model, 50_000, options)
        file = (await client.batches.retrieve(batch)).input_file_id
        await until_begun(client, batch)
        capacity = await rate(client, batch, options.seconds / 2)
        shards, people, busy, lines = (
            len(server.shards()),
            [People(server.url, server.model, options) for _ in "ab"],
            0.0,
            0,
        )
        alone, beside = people
        for turn in range(options.turns):
            await client.batches.cancel(batch)
            await until_over(client, batch)
            busy -= await metric(http, "octavo_shard_step_seconds_total")
            await come(server, http, alone, turn)
            busy += await metric(http, "octavo_shard_step_seconds_total")
            batch = await begin_again(client, file)
            await until_begun(client, batch)
            lines -= await done(client, batch)
            await come(server, http, beside, turn)
            lines += await done(client, batch)
        await client.batches.cancel(batch)
    seconds = options.seconds * options.turns
    busy, per_second = busy / seconds / shards, lines / seconds
    result = {
        "people": {"alone": len(alone.first), "beside": len(beside.first), "failed": alone.failed + beside.failed},
        "first_token_p50_ms": [round(1000 * high(one.first, 0.5), 1) for one in people],
        "first_token_p99_ms": [round(1000 * high(one.first), 1) for one in people],
        "each_token_p50_ms": [round(1000 * high(one.each, 0.5), 2) for one in people],
        "each_token_p99_ms": [round(1000 * high(one.each), 2) for one in people],
        "explained_ms": [one.parts_ms for one in people],
        "busy": round(busy, 3),
        "cores": [{who: round(spent / seconds, 2) for who, spent in one.cpu.items()} for one in people],
        "lines_per_second": {"capacity": round(capacity, 2), "beside": round(per_second, 2)},
        "first_token": round(high(beside.first) / high(alone.first), 3),
        "each_token": round(high(beside.each) / high(alone.each), 3),
        "idle": round(per_second / max(1e-9, capacity * (1 - busy)), 3),
    }
    found = [name for name in ("first_token", "each_token") if result[name] > BARS[name]]
    result["missed"] = found + ["idle"] * (result["idle"] < BARS["idle"])
    print(json.dumps(result), flush=True)
    return result


async def come(server: RunningServer, http: httpx.AsyncClient, people: People, turn: int) -> None:
    """Have people come, and count what of the processor is taken meanwhile."""
    before = processor(server)
    await people.come(people.options.seconds, turn)
    after = processor(server)
    people.cpu.update({who: after[who] - before[who] for who in after})
    await people.explain(http)


async def until_over(client: openai.AsyncOpenAI, batch: str) -> None:
    while (await client.batches.retrieve(batch)).status != "cancelled":
        await asyncio.sleep(0.2)


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
