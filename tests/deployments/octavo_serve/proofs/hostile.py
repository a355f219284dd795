"""Hostile requests beside healthy streams: nobody but the sender may notice.

    python tests/deployments/octavo_serve/proofs/hostile.py CONFIG --requests 10000

Eight clients read the same streams again and again, alone and while another process sends hostile requests of every
kind (`hostile_requests`). Their tokens must stay the same, their 99th percentile of the time between two
tokens may double, no answer may be a 5xx, no process of the server may be replaced, and the gateway must not keep more
than 100 MB. Exit code 1 if any of that fails. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from hostile_requests import Attack, attack
from running import RunningServer, parser

STREAMS = 8
ANSWER_SECONDS = 60.0
PROMPTS = [f"Chapter {i + 1}. The story of the {animal} begins" for i, animal in enumerate(
    ("fox", "owl", "bear", "wolf", "crow", "hare", "deer", "mole"))]  # fmt: skip


def main() -> None:
    options = arguments()
    if options.attack_port:
        print(json.dumps(asyncio.run(attack_all(options))))
        return
    with RunningServer(options.config, options.port) as server:
        result = asyncio.run(prove(server, options))
    print(json.dumps(result))
    sys.exit(1 if complaints(result) else 0)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--clients", type=int, default=32, help="hostile ones at once")
    options.add_argument("--rate", type=float, default=50.0, help="hostile requests per second, at most")
    options.add_argument("--tokens", type=int, default=60, help="of each healthy stream")
    options.add_argument("--alone", type=float, default=30.0, help="seconds of the streams alone, before and after")
    options.add_argument("--attack-port", type=int, help=argparse.SUPPRESS)  # of the process that attacks
    options.add_argument("--model", help=argparse.SUPPRESS)
    return options.parse_args()


def complaints(result: dict[str, Any]) -> list[str]:
    """What went wrong."""
    found = {
        "a healthy stream failed": result["healthy_failures"] > 0,
        "a 5xx": any(map(is_fault, result["answers"])),
        "a complete request had no answer": result["answers"].get("no answer", 0) > 0,
        "p99 more than doubled": result["p99_ms"] > 2 * result["p99_alone_ms"],
        "memory": result["gateway_mb"][1] - result["gateway_mb"][0] > 100,
        "a process was replaced": result["replaced"] > 0,
    }
    return [name for name, wrong in found.items() if wrong]


def is_fault(answer: str) -> bool:
    """Whether a status is the server's fault; 529 is what /v1/messages says for 429."""
    return answer.isdigit() and answer >= "500" and answer != "529"


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    expected = await expected_texts(server.url, server.model, options.tokens)
    healthy = Healthy(server.url, server.model, options.tokens, expected)
    alone_before = await healthy.run_for(options.alone)
    before, memory = sorted(pid for pid, _ in server.replicas()), [gateway_mb(server)]
    command = [
        sys.executable,
        __file__,
        str(options.config),
        "--attack-port",
        str(server.port),
        "--model",
        server.model,
    ]
    for name in ("requests", "clients", "rate", "seed"):
        command += [f"--{name}", str(getattr(options, name))]
    start = time.monotonic()
    attackers = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**24)
    attacking = asyncio.create_task(attackers.communicate())
    during = percentiles(await healthy.run_until(attacking))
    seconds = time.monotonic() - start
    # before and after, for a machine with other work is not the same all the time
    alone = percentiles(alone_before + await healthy.run_for(options.alone))
    memory.append(gateway_mb(server))
    after = sorted(pid for pid, _ in server.replicas())
    report = json.loads((await attacking)[0])
    result = {
        "requests": options.requests, "seconds": round(seconds), "healthy_streams": healthy.finished,
        "healthy_failures": len(healthy.failures), "p50_alone_ms": alone[0], "p50_ms": during[0],
        "p99_alone_ms": alone[1], "p99_ms": during[1], "gateway_mb": memory,
        "replaced": len(set(before) ^ set(after)), **report,
    }  # fmt: skip
    print(*healthy.failures[:5], *complaints(result), sep="\n", flush=True)
    return result


def percentiles(gaps: list[float]) -> tuple[float, float]:
    """50th and 99th, in ms."""
    ordered = sorted(gaps)
    at = [ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 99)] if ordered else [0.0, 0.0]
    return round(at[0] * 1000, 1), round(at[1] * 1000, 1)


def gateway_mb(server: RunningServer) -> int:
    found = 0
    for pid, name in server.replicas():
        if name.lower().startswith("gateway"):
            found += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 // 2**20
    return found


# ── healthy clients ──


async def expected_texts(url: str, model: str, tokens: int) -> list[str]:
    """What each prompt's greedy stream says."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        bodies = [
            {"model": model, "prompt": p, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} for p in PROMPTS
        ]
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    return [answer.json()["choices"][0]["text"] for answer in answers]


class Stalls:
    """When this process's own event loop stood still: what it reads late then was not sent late.

    Attributes:
        spans: (begin, end) of each, on `time.perf_counter`'s clock.
    """

    TICK = 0.01

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    async def watch(self) -> None:
        while True:
            due = time.perf_counter() + self.TICK
            await asyncio.sleep(self.TICK)
            if (now := time.perf_counter()) - due > self.TICK:
                self.spans.append((due, now))

    def within(self, begin: float, end: float) -> float:
        """Seconds of it between the two."""
        first = bisect.bisect(self.spans, begin, key=lambda span: span[1])
        spans = itertools.takewhile(lambda span: span[0] < end, self.spans[first:])
        return sum(min(end, later) - max(begin, earlier) for earlier, later in spans)


class Healthy:
    """Clients that read streams to their ends, over and over.

    Attributes:
        failures: what was wrong with streams that were not as expected.
        finished: streams that were read to their end.
        stalls: of this process, which are no part of the gaps.
    """

    def __init__(self, url: str, model: str, tokens: int, expected: list[str]) -> None:
        self._url, self._model, self._tokens, self._expected = url, model, tokens, expected
        self._gaps: list[tuple[float, float]] = []  # between two events of a stream
        self.failures: list[str] = []
        self.finished = 0
        self.stalls = Stalls()
        self._stop = False

    async def run_for(self, seconds: float) -> list[float]:
        return await self.run_until(asyncio.create_task(asyncio.sleep(seconds)))

    async def run_until(self, end: asyncio.Task[Any]) -> list[float]:
        """Read until then; returns the gaps, in seconds."""
        self._stop, self._gaps = False, []
        watching = asyncio.create_task(self.stalls.watch())
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            readers = [asyncio.create_task(self._read(client, i)) for i in range(len(self._expected))]
            await asyncio.wait([end])
            self._stop = True
            await asyncio.gather(*readers)
        watching.cancel()
        return [end - begin - self.stalls.within(begin, end) for begin, end in self._gaps]

    async def _read(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._stop:
            try:
                text = await self._stream(client, number)
            except Exception as error:
                self.failures.append(f"stream {number}: {error!r}")
                await asyncio.sleep(0.2)
                continue
            self.finished += 1
            if text != self._expected[number]:
                self.failures.append(f"stream {number}: {text!r} instead of {self._expected[number]!r}")

    async def _stream(self, client: httpx.AsyncClient, number: int) -> str:
        prompt = PROMPTS[number % len(PROMPTS)]
        body = {"model": self._model, "prompt": prompt, "max_tokens": self._tokens, "temperature": 0,
                "ignore_eos": True, "stream": True}  # fmt: skip
        text, last = "", None
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.perf_counter()
                if last is not None:
                    self._gaps.append((last, now))
                last = now
                text += json.loads(line[6:])["choices"][0]["text"]
        return text


# ── hostile clients ──


async def attack_all(options: argparse.Namespace) -> dict[str, Any]:
    """Send all of it; what came back, by code, and what of it was a 5xx or nothing."""
    os.nice(10)  # they share a machine with the server, and are not what is measured
    return await Attackers(options.attack_port, options.model, options.seed).run(
        options.requests, options.clients, options.rate
    )


class Attackers:
    """Hostile clients.

    Args:
        draw: makes the next request.
        addresses: of this machine's loopback from which they come, in turns.

    Attributes:
        answers: status -> how many, and "closed", "no answer" (for a request that was whole).
        bad: the kinds and answers of those with a 5xx or no answer.
    """

    def __init__(
        self,
        port: int,
        model: str,
        seed: int,
        draw: Callable[[random.Random, str], Attack] = attack,
        addresses: Sequence[str] = ("127.0.0.1",),
    ) -> None:
        self._port, self._model, self._draw = port, model, draw
        self._addresses = itertools.cycle(addresses)
        self._rng = random.Random(seed)
        self.answers: Counter[str] = Counter()
        self.bad: list[str] = []

    async def run(self, requests: int, clients: int, rate: float) -> dict[str, Any]:
        numbers, start = iter(range(requests)), time.monotonic()

        async def client() -> None:
            for number in numbers:
                await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
                await self._one(self._draw(self._rng, self._model))
                if number % 1000 == 999:
                    print(f"{number + 1} hostile requests, {dict(self.answers)}", file=sys.stderr, flush=True)

        await asyncio.gather(*(client() for _ in range(clients)))
        return {"answers": dict(sorted(self.answers.items())), "bad": self.bad[:20]}

    async def _one(self, one: Attack) -> None:
        try:
            answer = await asyncio.wait_for(self._converse(one), ANSWER_SECONDS)
        except TimeoutError:
            answer = "no answer"
        except OSError:
            answer = "closed"
        self.answers[answer] += 1
        if answer == "no answer" or is_fault(answer):
            self.bad.append(f"{answer}: {one.kind} {one.sends[0][:300]!r}")  # type: ignore[index]

    async def _converse(self, one: Attack) -> str:
        """The last status of the connection, or how it ended."""
        source = next(self._addresses), 0
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=source)
        try:
            await self._send(writer, one)
            received = await self._receive(reader, one)
        finally:
            writer.transport.abort()
        statuses = [part[:3].decode("latin-1") for part in received.split(b"HTTP/1.1 ")[1:]]
        statuses = [status for status in statuses if status.isdigit() and status != "100"]
        return max(statuses, default="closed" if one.complete else "cut")

    async def _send(self, writer: asyncio.StreamWriter, one: Attack) -> None:
        for part in one.sends:
            if isinstance(part, float):
                await asyncio.sleep(part)
                continue
            writer.write(part)
            try:
                await writer.drain()
            except OSError:
                return  # refused before it was all sent: the answer may be there

    async def _receive(self, reader: asyncio.StreamReader, one: Attack) -> bytes:
        received = b""
        while len(received) < one.reads:
            try:
                part = await asyncio.wait_for(reader.read(65_536), ANSWER_SECONDS if one.complete else 0.2)
            except TimeoutError:
                if one.complete:
                    raise
                break
            except OSError:
                break
            if not part:
                break
            received += part
        return received


if __name__ == "__main__":
    main()
