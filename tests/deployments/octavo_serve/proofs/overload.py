"""Twice the load that a server can carry, for minutes: who is refused is told at once, and the truth.

    python tests/deployments/octavo_serve/proofs/overload.py configs/rehearsal.yaml --seconds 120
    python tests/deployments/octavo_serve/proofs/overload.py configs/quickstart.yaml --words 60 --tokens 60

First the capacity: `--clients` who each send the next request when the last was answered, for `--capacity-seconds`.
Then requests come at `--times` that rate, each when it is due (Poisson), whatever has become of the others. A refused
client leaves, or (`--returning` of them) comes again exactly when it was told, as often as it takes. Meanwhile /health
and /metrics are asked four times a second, and a prompt whose first token is to be there within 20 ms, which no queue
allows: it is to be refused within 10 ms (p99). Another process sends, so that this one's watch is right.

`echo_ms` is what the machine and this watch themselves take in the same moments: the same client asks a server that
does nothing, in a process of its own. Where its 99th percentile is above 5 ms, a refusal's says more of who waits for a
core than of the gateway.

A told time is true if the client that comes back then is accepted. Two things are complained of: that more than one in
ten is refused again, and that who is accepted waits more than 1.3 times as long as the bound allows (`longest`, and a
quarter more for those who return).

A stricter reckoning is printed too. It holds the told time to the moment from which the wait would have been `longest`:

    reckoned = accepted - refused + (first token - accepted - alone - longest)     all moments of this client
    longest  = max_queue_s, or what max_queued_tokens take at the capacity, where that is less

`alone` is the time to a first token on an idle server. An error in the predicted wait, of 30 s say, counts in it in
full. Told times are whole seconds, as the header has them.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from running import RunningServer, parser

from octavo_serve.config.config_file import read_plan

WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"]
RETURNING = 1.25  # times the bound that who returns may wait (`octavo.routing.admission`)
FILLING = 0.2
"""Part of the overload's time that its goodput is not counted in: nothing is refused before the queue is full."""


def main() -> None:
    options = arguments()
    if options.sender is not None:
        print(json.dumps(asyncio.run(Sender(json.loads(options.sender)).run())))
        return
    if options.echo:
        asyncio.run(echo())
        return
    if options.rehearsal_speed is not None:
        options.config = slower(options.config, options.rehearsal_speed)
    with RunningServer(options.config, options.port) as server:
        result = asyncio.run(prove(server, options))
    print(json.dumps(result))
    sys.exit(1 if result["complaints"] else 0)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=120.0, help="of overload")
    options.add_argument("--times", type=float, default=2.0, help="the capacity")
    options.add_argument("--capacity", type=float, help="requests per second; measured where it is not given")
    options.add_argument("--capacity-seconds", type=float, default=40.0)
    options.add_argument("--clients", type=int, default=256, help="that measure the capacity")
    options.add_argument("--returning", type=float, default=0.2, help="part of the refused clients that come again")
    options.add_argument("--words", type=int, default=1500, help="of a prompt")
    options.add_argument("--tokens", type=int, default=32, help="of an answer")
    options.add_argument(
        "--rehearsal-speed", type=float, help="of the config's shards: they bind then, not this machine"
    )
    options.add_argument("--sender", help=argparse.SUPPRESS)  # what the process that sends is to do
    options.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)  # be the server that does nothing
    return options.parse_args()


def slower(config: Path, speed: float) -> Path:
    """The same config with its shards rehearsed at another speed."""
    document = yaml.safe_load(config.read_text())
    for application in document["applications"]:
        for model in application["args"]["models"]:
            model["engine"]["rehearsal_speed"] = speed
    path = Path(tempfile.mkdtemp(prefix="oct"), config.name)
    path.write_text(yaml.safe_dump(document))
    return path


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    model = next(one for app in read_plan(options.config).settings for one in app.models if one.name == server.model)
    job = {
        "port": server.port, "model": server.model, "words": options.words, "tokens": options.tokens,
        "seed": options.seed, "clients": options.clients, "returning": options.returning,
    }  # fmt: skip
    alone = await send(job | {"clients": 1, "seconds": 5.0})
    first_token = statistics.median(one["first"] - one["accepted"] for one in alone["ended"])
    if (capacity := options.capacity) is None:
        closed = await send(job | {"seconds": options.capacity_seconds})
        capacity = rate(closed["ended"], options.capacity_seconds / 4, options.capacity_seconds)
        print(f"{capacity:.2f} requests per second; first token alone after {first_token:.3f} s", flush=True)
    await asyncio.sleep(1.0)
    overload = job | {"seconds": options.seconds, "rate": options.times * capacity}
    sending = asyncio.create_task(send(overload))
    watches = await watch(server, sending, hopeless(job))
    sent = await sending
    goodput = rate(sent["ended"], FILLING * options.seconds, options.seconds)
    longest = min(model.max_queue_s, model.max_queued_tokens / (capacity * options.words))  # a word is about a token
    told = honesty(sent, longest + first_token)
    result = {
        "capacity": round(capacity, 2), "offered": round(options.times * capacity, 2), "goodput": round(goodput, 2),
        "goodput_share": round(goodput / capacity, 3), "sent": sent["sent"], "accepted": len(sent["ended"]),
        "refused": sent["refused"], "failed": sent["failed"][:5], "num_failed": len(sent["failed"]),
        "refusal_ms": quantiles(sent["refusals"]), **watches, **told,
        "longest_wait_s": round(RETURNING * longest + first_token, 1),
        "first_token_s": quantiles([one["first"] - one["accepted"] for one in sent["ended"]], 1.0),
    }  # fmt: skip
    return result | {"complaints": complaints(result)}


def complaints(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = {
        "goodput below 95 % of the capacity": result["goodput_share"] < 0.95,
        "nobody was refused": result["refused"] == 0,
        "a request failed": result["num_failed"] > 0,
        "p99 of the refusals above 50 ms": result["refusal_ms"][1] > 50,
        "p99 of the refusals of impossible deadlines above 10 ms": result["hopeless_ms"][1] > 10,
        "/health or /metrics above 100 ms": max(result["health_ms"][2], result["metrics_ms"][2]) > 100,
        "one in ten of those who came back when told was refused again": result["refused_again"]
        > 0.1 * result["returned"],
        "who was accepted waited over 1.3 times the bound": result["first_token_s"][1] > 1.3 * result["longest_wait_s"],
    }
    return [name for name, wrong in found.items() if wrong]


def honesty(sent: dict[str, Any], expected: float) -> dict[str, Any]:
    """How true the times were that returning clients were told: a share within 30 % or a second of those reckoned."""
    pairs = [
        (one["told"], one["accepted"] - one["refused"] + (one["first"] - one["accepted"] - expected))
        for one in sent["ended"] if one["told"] is not None
    ]  # fmt: skip
    right = [abs(told - truth) <= max(1.0, 0.3 * truth) for told, truth in pairs]
    again = [one["refusals"] for one in sent["ended"] if one["told"] is not None]
    return {
        "returned": len(pairs),
        "told_as_reckoned": round(sum(right) / len(right), 3) if right else 1.0,
        "told_s": quantiles([told for told, _ in pairs], 1.0),
        "reckoned_s": quantiles([truth for _, truth in pairs], 1.0),
        "refused_again": sum(number > 1 for number in again),
    }


def rate(ended: list[dict[str, Any]], start: float, end: float) -> float:
    """Answers per second that ended between two times since the start."""
    return sum(start <= one["end"] < end for one in ended) / (end - start)


def quantiles(values: list[float], scale: float = 1000.0) -> list[float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(values) or [0.0]
    return [round(scale * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) for share in (0.5, 0.99, 1)]


async def send(job: dict[str, Any]) -> dict[str, Any]:
    """Have another process do it."""
    command = [sys.executable, __file__, "-", "--sender", json.dumps(job)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**28)
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output)
    return found


def hopeless(job: dict[str, Any]) -> dict[str, Any]:
    """A chat that asks for its first token at once."""
    text = " ".join(random.Random(job["seed"]).choices(WORDS, k=job["words"]))
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": job["tokens"]}
    return {"model": job["model"], "deadline_ms": 20, **asked}


async def watch(server: RunningServer, end: asyncio.Task[Any], body: dict[str, Any]) -> dict[str, Any]:
    """What /health, /metrics and the refusal of an impossible deadline take meanwhile."""
    took: dict[str, list[float]] = {"health": [], "metrics": [], "hopeless": [], "echo": []}
    echoing = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "-", "--echo", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert echoing.stdin is not None and echoing.stdout is not None  # noqa: PT018
    nothing = f"http://127.0.0.1:{int(await echoing.stdout.readline())}"
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:

        async def timed(name: str, asking: Awaitable[httpx.Response]) -> httpx.Response:
            start = time.perf_counter()
            answer = await asking
            if name != "hopeless" or answer.status_code == 429:  # at the beginning nothing waits yet
                took[name].append(time.perf_counter() - start)
            return answer

        while not end.done():
            for name in ("health", "metrics"):
                (await timed(name, client.get(f"/{name}"))).raise_for_status()
            for _ in range(2):
                await timed("hopeless", client.post("/v1/chat/completions", json=body))
                await timed("echo", client.post(nothing, json=body))
            await asyncio.sleep(0.25)
    echoing.stdin.close()
    await echoing.wait()
    return {f"{name}_ms": quantiles(seconds) for name, seconds in took.items()} | {"hopeless": len(took["hopeless"])}


async def echo() -> None:
    """Answer every request with nothing, until standard input ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
                await reader.readexactly(int(size))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


# ── the process that sends ──


@dataclass(slots=True)
class Client:
    """What became of one client; seconds since the start.

    Attributes:
        told: seconds that it was told to stay away the first time, as the header rounds them.
        refused: when that was.
        refusals: how often.
        accepted: when the request that was accepted was sent.
    """

    told: float | None = None
    refused: float = 0.0
    refusals: int = 0
    accepted: float = 0.0
    first: float = 0.0
    end: float = 0.0


class Sender:
    """Sends requests over raw connections, which cost a tenth of what an HTTP client's do."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._rng = random.Random(job["seed"])
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._start = 0.0
        self._ended: list[Client] = []
        self._refusals: list[float] = []
        self._failed: list[str] = []
        self._sent = 0

    async def run(self) -> dict[str, Any]:
        os.nice(5)
        self._start = time.monotonic()
        if "rate" in self._job:
            clients = []
            due = 0.0
            while (due := due + self._rng.expovariate(self._job["rate"])) < self._job["seconds"]:
                await asyncio.sleep(max(0.0, due - self._now()))
                clients.append(asyncio.create_task(self._client(self._rng.random() < self._job["returning"])))
            await asyncio.wait(clients)
        else:
            await asyncio.gather(*(self._closed() for _ in range(self._job["clients"])))
        return {
            "sent": self._sent, "refused": len(self._refusals), "refusals": self._refusals, "failed": self._failed,
            "ended": [asdict(client) for client in self._ended],
        }  # fmt: skip

    def _now(self) -> float:
        return time.monotonic() - self._start

    async def _closed(self) -> None:
        while self._now() < self._job["seconds"]:
            await self._client(True)

    async def _client(self, returns: bool) -> None:
        client, request = Client(), self._request()
        try:
            while (wait := await self._once(client, request)) is not None:
                if not returns:
                    return
                await asyncio.sleep(wait)
            self._ended.append(client)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            self._failed.append(repr(error)[:300])

    def _request(self) -> bytes:
        job = self._job
        body = json.dumps({
            "model": job["model"], "prompt": " ".join(self._rng.choices(WORDS, k=job["words"])), "stream": True,
            "max_tokens": job["tokens"], "temperature": 0, "ignore_eos": True,
        }).encode()  # fmt: skip
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"Content-Type: application/json\r\n\r\n" + body

    async def _once(self, client: Client, request: bytes) -> float | None:
        """Send it; returns the seconds that it is to stay away, or None when it was answered."""
        self._sent += 1
        client.accepted = self._now()
        port = self._job["port"]
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = int(head.split(" ", 2)[1])
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            if status == 200:
                await self._answer(client, reader)
                return None
            body = await reader.readexactly(int(headers["content-length"]))
            if status != 429:
                raise ValueError(f"{status}: {body[:200]!r}")
            self._refusals.append(self._now() - client.accepted)
            told = float(headers["retry-after"])
            client.refusals += 1
            if client.told is None:
                client.told, client.refused = told, self._now()
            return told
        except BaseException:
            writer.close()
            raise
        finally:
            if not writer.is_closing():
                self._idle.append((reader, writer))

    async def _answer(self, client: Client, reader: asyncio.StreamReader) -> None:
        text = b""
        while size := int(await reader.readline(), 16):
            text += (await reader.readexactly(size + 2))[:-2]
            client.first = client.first or self._now()
        await reader.readline()
        client.end = self._now()
        if b"data: [DONE]" not in text or b'"error"' in text:
            raise ValueError(f"not the whole answer: {text[-200:]!r}")


if __name__ == "__main__":
    main()
