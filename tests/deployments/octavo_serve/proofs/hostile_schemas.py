"""Hostile schemas, grammars and tools beside healthy streams: nobody but the sender may notice.

    python tests/deployments/octavo_serve/proofs/hostile_schemas.py CONFIG --requests 10000

As `hostile`, with the requests of `hostile_schema_requests`: they are chats, completions, responses and messages, whole
and in good form, and wrong in what they say of their answers. Eight clients read streams beside them, and before and
after beside as many ordinary requests, whose prompts are as long: any newcomer's prompt holds up streams, as long as
`target_itl` lets it. One more client asks now and then for a token of a schema that nobody has sent before, and then
for one without a schema: alone, beside ordinary requests and beside hostile ones, the second says what of the first's
wait is the server's load and not its grammar. Hostile requests come from `--askers` addresses of the loopback that are
not the healthy clients': askers take turns where grammars are compiled. With 0 they come from the same. No healthy
stream may fail, no gap of one may be longer than twice the 99th percentile beside ordinary requests (of which some are,
too: `long_gaps_alone`), no answer may be a 5xx, no process may be replaced. What this process itself stood still is no
part of a gap. Exit code 1 if any of that fails. The last line but one of the output is the verdict, the last one JSON.
It takes 19 minutes; 1,500 requests take four and a half. On a machine with other work gaps and 429s say nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
import hostile_schema_requests
from hostile import Attackers, Healthy, expected_texts, is_fault, percentiles
from running import RunningServer, parser

NEW_EVERY = 0.5
"""Seconds between two new schemas of a healthy client."""


def main() -> None:
    options = arguments()
    if options.attack_port:
        os.nice(10)  # they share a machine with the server, and are not what is measured
        draw = hostile_schema_requests.ordinary if options.ordinary else hostile_schema_requests.attack
        addresses = [f"127.0.1.{1 + i}" for i in range(options.askers)] or ["127.0.0.1"]
        attackers = Attackers(options.attack_port, options.model, options.seed, draw, addresses)
        print(json.dumps(asyncio.run(attackers.run(options.requests, options.clients, options.rate))))
        return
    others = os.getloadavg()[0]
    with RunningServer(options.config, options.port) as server:
        result = {"load_before": round(others, 1), **asyncio.run(prove(server, options))}
    wrong = complaints(result)
    if others > os.cpu_count() / 2:  # type: ignore[operator]
        print(f"The machine was busy with other work (load average {others:.1f}): a gap says nothing, nor does a 429.")
    print(f"FAILED: {'; '.join(wrong)}" if wrong else f"PASSED: {options.requests} hostile requests, nobody noticed")
    print(json.dumps(result))
    sys.exit(1 if wrong else 0)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--clients", type=int, default=32, help="hostile ones at once")
    options.add_argument("--rate", type=float, default=10.0, help="hostile requests per second, at most")
    options.add_argument("--tokens", type=int, default=60, help="of each healthy stream")
    options.add_argument("--alone", type=float, default=30.0, help="seconds beside ordinary requests, before and after")
    options.add_argument("--askers", type=int, default=1, help="addresses that hostile requests come from, up to 250")
    options.add_argument("--attack-port", type=int, help=argparse.SUPPRESS)  # of the process that attacks
    options.add_argument("--model", help=argparse.SUPPRESS)
    options.add_argument("--ordinary", action="store_true", help=argparse.SUPPRESS)
    return options.parse_args()


def complaints(result: dict[str, Any]) -> list[str]:
    """What went wrong."""
    found = {
        "a healthy stream failed": result["healthy_failures"] > 0 or result["new_schemas"]["failures"] > 0,
        "a 5xx": any(map(is_fault, result["answers"])),
        "a complete request had no answer": result["answers"].get("no answer", 0) > 0,
        "a gap was longer than twice the p99 beside ordinary requests": result["long_gaps"] > 0,
        "a process was replaced": result["replaced"] > 0,
    }
    return [name for name, wrong in found.items() if wrong]


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    expected = await expected_texts(server.url, server.model, options.tokens)
    healthy, new = Healthy(server.url, server.model, options.tokens, expected), Newcomer(server)
    alone = await new.run(20)
    alone_before, ordinary = await beside_ordinary(server, options, healthy, new)
    before, memory = sorted(pid for pid, _ in server.replicas()), [resident_mb(server)]
    start = time.monotonic()
    attacking = asyncio.create_task(attack(server, options, options.requests))
    asking = asyncio.create_task(new.run_until(attacking))
    gaps = await healthy.run_until(attacking)
    seconds = time.monotonic() - start
    # before and after, for a machine with other work is not the same all the time
    alone_after, later = await beside_ordinary(server, options, healthy, new)
    usual, during = percentiles(alone_before + alone_after), percentiles(gaps)
    memory.append(resident_mb(server))
    after = sorted(pid for pid, _ in server.replicas())
    result = {
        "requests": options.requests, "rate": options.rate, "seconds": round(seconds),
        "healthy_streams": healthy.finished, "healthy_failures": len(healthy.failures),
        "p50_alone_ms": usual[0], "p50_ms": during[0], "p99_alone_ms": usual[1], "p99_ms": during[1],
        "longest_alone_ms": round(1000 * max(alone_before + alone_after), 1), "longest_ms": round(1000 * max(gaps), 1),
        "gaps": len(gaps), "long_gaps": sum(gap > 2 * usual[1] / 1000 for gap in gaps),
        "gaps_alone": len(alone_before + alone_after),
        "stalls": len(healthy.stalls.spans),
        "longest_stall_ms": round(1000 * max((end - begin for begin, end in healthy.stalls.spans), default=0.0), 1),
        "long_gaps_alone": sum(gap > 2 * usual[1] / 1000 for gap in alone_before + alone_after),
        "new_schemas": {
            "alone_ms": waits(alone), "beside_ordinary_ms": waits(ordinary + later),
            "ms": waits(found := await asking), "failures": len(new.failures),
            "later_ms": percentiles([max(0.0, schema - none) for schema, none in found]),
        },
        "resident_mb": memory, "replaced": len(set(before) ^ set(after)), **await attacking,
    }  # fmt: skip
    print(*healthy.failures[:5], *new.failures[:5], sep="\n", flush=True)
    return result


async def beside_ordinary(
    server: RunningServer, options: argparse.Namespace, healthy: Healthy, new: Newcomer
) -> tuple[list[float], list[Waited]]:
    """The gaps beside ordinary requests, and what a newcomer waits."""
    attacking = asyncio.create_task(attack(server, options, round(options.alone * options.rate), "--ordinary"))
    asking = asyncio.create_task(new.run_until(attacking))
    return await healthy.run_until(attacking), await asking


async def attack(server: RunningServer, options: argparse.Namespace, count: int, *more: str) -> dict[str, Any]:
    """So many requests, from a process of their own; what came back."""
    command = [sys.executable, __file__, str(options.config), "--attack-port", str(server.port)]
    command += ["--model", server.model, "--requests", str(count), *more]
    for name in ("clients", "rate", "seed", "askers"):
        command += [f"--{name}", str(getattr(options, name))]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**24)
    found: dict[str, Any] = json.loads((await process.communicate())[0])
    return found


Waited = tuple[float, float]
"""Seconds to a token of a new schema, and of none."""


def waits(found: list[Waited]) -> dict[str, list[float]]:
    """Median and 99th percentile in ms, with a schema and without."""
    return {name: percentiles([each[i] for each in found]) for i, name in enumerate(("schema", "none"))}


class Newcomer:
    """A healthy client whose every schema is new.

    Attributes:
        failures: answers that were none, and why.
    """

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._count = 0
        self.failures: list[str] = []

    async def run(self, count: int) -> list[Waited]:
        """Ask so often, with a schema and without."""
        # without TLS: reading the certificates of a client takes 20 ms of what is measured
        async with httpx.AsyncClient(base_url=self._server.url, timeout=120, verify=False) as client:
            return [(await self._ask(client, self._new()), await self._ask(client, None)) for _ in range(count)]

    async def run_until(self, end: asyncio.Task[Any]) -> list[Waited]:
        """Ask now and then until then."""
        found: list[Waited] = []
        while not end.done():
            found += await self.run(1)
            await asyncio.wait([end], timeout=NEW_EVERY)
        return found

    def _new(self) -> dict[str, Any]:
        self._count += 1
        return {"type": "object", "properties": {f"name_{self._count}": {"type": "string"}}}

    async def _ask(self, client: httpx.AsyncClient, schema: dict[str, Any] | None) -> float:
        body = {"model": self._server.model, "prompt": "JSON: ", "max_tokens": 1, "guided_json": schema}
        start = time.monotonic()
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code}: {answer.text[:300]}")
        return time.monotonic() - start


def resident_mb(server: RunningServer) -> dict[str, int]:
    """MB of each replica, by deployment; memory that it shares with others counts in full."""
    found: Counter[str] = Counter()
    for pid, command in server.replicas():
        found[command.partition(".")[0]] += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 // 2**20
    return dict(found)


if __name__ == "__main__":
    main()
