"""Break the connections between gateways and shards, and stop their processes, under load: no client may notice.

    python tests/deployments/octavo_serve/proofs/links.py configs/rehearsal.yaml --cuts 100

Starts `octavo serve CONFIG`, records what each of its requests says in an unbroken run, and keeps `--streams` of them
under way while

1. connections are shut down at random, from the gateway's side and from the shard's in turn,
2. a shard is stopped for `--stop-shard` seconds: its streams move, and it must come back by itself,
3. a gateway is stopped for `--stop-gateway` seconds: its streams must survive that.

Every answer must be complete and equal to the unbroken one, and /health must count the shards that can be reached at
most 2 s after each change. Needs Linux 5.6 and root, to reach into the processes' sockets. Exit code 1 if anything was
wrong. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from kill_shards import keep_asking, requests, texts
from running import RunningServer, metric, parser

PIDFD_GETFD = 438
LISTEN, ESTABLISHED = "0A", "01"
TRUTH_SECONDS = 2.0
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    options = arguments()
    with RunningServer(options.config, options.port) as server:
        result = asyncio.run(prove(server, options))
    print(json.dumps(result))
    sys.exit(0 if result["verdict"] == "right" else 1)


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--cuts", type=int, default=100)
    options.add_argument("--pause", type=float, default=0.5, help="mean seconds between two cuts")
    options.add_argument("--streams", type=int, default=16, help="requests under way at once")
    options.add_argument("--tokens", type=int, default=400)
    options.add_argument("--stop-shard", type=float, default=20.0)
    options.add_argument("--stop-gateway", type=float, default=15.0)
    return options.parse_args()


async def prove(server: RunningServer, options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=100)) as client:
        bodies = [{"model": server.model, **body} for body in requests(options.tokens, random.Random(options.seed))]
        await until_health_says(client, server.model, all_shards := len(server.shards()), 60)
        unbroken = [await texts(client, body) for body in bodies]
        seen: Counter[str] = Counter()
        over = asyncio.Event()
        clients = [
            asyncio.create_task(keep_asking(client, bodies, unbroken, seen, over)) for _ in range(options.streams)
        ]
        late: dict[str, float | None] = {}
        moves = {}
        cuts = await cut(server, options, rng)
        late["cuts"] = await until_health_says(client, server.model, all_shards)
        moves["cuts"] = await metric(client, "octavo_stream_moves_total")
        with stopped(rng.choice(server.shards())):
            late["shard stops"] = await until_health_says(client, server.model, all_shards - 1)
            await asyncio.sleep(options.stop_shard)
        late["shard goes on"] = await until_health_says(client, server.model, all_shards)
        moves["shard"] = await metric(client, "octavo_stream_moves_total") - moves["cuts"]
        with stopped(rng.choice(gateways(server))):
            await asyncio.sleep(options.stop_gateway)
        late["gateway goes on"] = await until_health_says(client, server.model, all_shards)
        moves["gateway"] = await metric(client, "octavo_stream_moves_total") - moves["shard"] - moves["cuts"]
        over.set()
        await asyncio.gather(*clients)
        left = await all_ended(client)
    right = seen.pop("right", 0)
    in_time = all(seconds is not None and seconds <= TRUTH_SECONDS for seconds in late.values())
    return {
        "cuts": cuts, "answers": right + sum(seen.values()), "right": right, "wrong": dict(seen), "moves": moves,
        "health_seconds": late, "left_running": left,
        "verdict": "right" if right and not seen and in_time and not left else "wrong",
    }  # fmt: skip


async def cut(server: RunningServer, options: argparse.Namespace, rng: random.Random) -> int:
    """Shut down connections at random, from either side in turn."""
    done = 0
    while done < options.cuts:
        await asyncio.sleep(rng.uniform(0, 2 * options.pause))
        ends = list(links(server, from_shard=done % 2 == 1))
        if ends and shut_down(*rng.choice(ends)):
            done += 1
            print(f"cut {done} of {len(ends)} links", flush=True)
    return done


async def until_health_says(client: httpx.AsyncClient, model: str, shards: int, patience: float = 30.0) -> float | None:
    """Seconds until /health counts so many shards; None if it does not."""
    start = time.monotonic()
    while time.monotonic() - start < patience:
        with contextlib.suppress(httpx.HTTPError):
            if (await client.get("/health")).json().get("shards", {}).get(model) == shards:
                return round(time.monotonic() - start, 2)
        await asyncio.sleep(0.05)
    return None


async def all_ended(client: httpx.AsyncClient) -> int:
    """Requests that the shards still run when nobody asks any more; waits a while for none."""
    left = 1
    for _ in range(50):
        if not (left := int(await metric(client, "vllm:num_requests_running"))):
            break
        await asyncio.sleep(0.2)
    return left


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for the length of a `with` block."""
    os.kill(pid, signal.SIGSTOP)
    print(f"stopped {pid}", flush=True)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        print(f"{pid} goes on", flush=True)


def gateways(server: RunningServer) -> list[int]:
    """Process ids of the gateways."""
    return [pid for pid, name in server.replicas() if not name.startswith("shard-") and ".initialize" not in name]


def links(server: RunningServer, *, from_shard: bool) -> Iterator[tuple[int, int]]:
    """(process id, file descriptor) of one end of each connection between a gateway and a shard's port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {line[9]: line for line in lines}
    shards = {pid: sockets(pid) for pid in server.shards()}
    listening = {
        inodes[inode][1].partition(":")[2]
        for pid, found in shards.items()
        for inode, fd in found.items()
        if inode in inodes and inodes[inode][3] == LISTEN and is_python(pid, fd)
    }
    owners = shards if from_shard else {pid: sockets(pid) for pid in gateways(server)}
    for pid, found in owners.items():
        for inode, fd in found.items():
            if inode in inodes and inodes[inode][3] == ESTABLISHED:
                here, there = (end.partition(":")[2] for end in inodes[inode][1:3])
                if (here if from_shard else there) in listening:
                    yield pid, fd


def sockets(pid: int) -> dict[str, int]:
    """Inode -> file descriptor."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(path.readlink())
            if target.startswith("socket:["):
                found[target[8:-1]] = int(path.name)
    return found


def is_python(pid: int, fd: int) -> bool:
    """Whether a listening socket is asyncio's: those of gRPC may be shared."""
    with opened(pid, fd) as found:
        return not found.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def shut_down(pid: int, fd: int) -> bool:
    """End a connection of another process as if the network had; False if it has just ended."""
    try:
        with opened(pid, fd) as found:
            found.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def opened(pid: int, fd: int) -> Iterator[socket.socket]:
    """A copy of another process's socket."""
    process = os.pidfd_open(pid)
    try:
        copy = LIBC.syscall(PIDFD_GETFD, process, fd, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        with socket.socket(fileno=copy) as found:
            yield found
    finally:
        os.close(process)


if __name__ == "__main__":
    main()
