"""What routing costs: time per decision, memory per block, and the feed's lag and recovery between two processes.

    .venv/bin/python examples/benchmark_feed.py [--blocks 25000] [--chain 64] [--shards 8]       # 20 s

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import struct
import time
import tracemalloc
from collections.abc import Sequence
from multiprocessing.connection import Connection

from octavo.config import EngineConfig
from octavo.cost_model import Cost
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.engine import Engine
from octavo.engine.served_engine import ServedEngine
from octavo.load import ShardState
from octavo.rehearsal.simulated import Profile, SimulatedExecutor
from octavo.routing.index import Change, ShardBlocks
from octavo.routing.policy import Query
from octavo.routing.router import Router, RoutingConfig
from octavo_serve.gateway.link import Link
from octavo_serve.shard.port import Port
from octavo_serve.wire.messages import Address

EVENTS, EVERY = 500, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=25_000, help="in the cache of a shard")
    parser.add_argument("--chain", type=int, default=64, help="blocks of a prompt")
    parser.add_argument("--shards", type=int, default=8)
    arguments = parser.parse_args()
    print("about 20 seconds", flush=True)
    counts = sorted({2, 8, 64, 512, 1000, arguments.shards})
    found = {
        **{f"decision_us_{count}": decision(count, arguments.chain) * 1e6 for count in counts},
        "bytes_per_block": memory(arguments.blocks),
        **feed(arguments.blocks),
    }
    for name, value in found.items():
        print(f"{name:20} {value:10.2f}")
    print(json.dumps(found))


def decision(shards: int, chain_length: int) -> float:
    """Seconds of CPU to route a request whose first half one shard in ten holds."""
    state = ShardState(
        decoding=20, context=20_000, prefilling=0, queued=3, backlog_tokens=2000, backlog_attended=10**6, chunk=2048,
        max_num_seqs=64, blocks=25_000, blocks_free=5000, block_size=16, mean_output=200.0,
        cost=Cost(6e-3, 3e-5, 1e-5, 1e-9, 5e-8),
    )  # fmt: skip
    chain = [os.urandom(16) for _ in range(chain_length)]
    router = Router(RoutingConfig())
    names = tuple(f"shard{number}" for number in range(shards))
    for number, name in enumerate(names):
        router.join(name, 0.0).blocks.part(0, 0, 1, [] if number % 10 else chain[: chain_length // 2])
        router.heard(name, state, [], 0.0)
    start = time.process_time()
    for number in range(1000):
        router.route(str(number), chain, Query(len(chain) * 16), names, 0.0)
        router.completed(str(number), ran=False)
    return (time.process_time() - start) / 1000


def memory(blocks: int) -> float:
    """Bytes per block of a shard's index."""
    tracemalloc.start()
    index = ShardBlocks(blocks)
    index.part(0, 0, 1, [])
    for number in range(0, blocks, 100):
        index.changes(number // 100, [("stored", [os.urandom(16) for _ in range(100)])])
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used / len(index)


class Stamped(ShardBlocks):
    """Hashes that are times: how long ago was each published?"""

    lags: list[float]
    messages = 0

    def changes(self, first: int, changes: Sequence[Change]) -> None:
        now = time.monotonic()
        told = b"".join(block for _, hashes in changes for block in hashes)
        self.lags += [now - said for _, said in struct.iter_unpack("<dd", told)]
        self.messages += 1
        super().changes(first, changes)


def feed(blocks: int) -> dict[str, float]:
    """Milliseconds from an event at the shard to the index, and from connecting to an exact index."""
    ours, theirs = multiprocessing.Pipe()
    shard = multiprocessing.get_context("spawn").Process(target=publish, args=(theirs, blocks))
    shard.start()
    found = asyncio.run(listen(ours.recv(), ours))
    shard.join()
    return found


async def listen(address: Address, shard: Connection) -> dict[str, float]:
    recoveries = [await recovery(address) for _ in range(5)]
    router = Router(RoutingConfig())
    known = router.join("a", time.monotonic())
    known.blocks = stamped = Stamped(500_000)
    stamped.lags = []
    link = await Link.open(address, 20.0)
    assert link is not None
    link.tell(router, "a")
    while not stamped.exact:
        await asyncio.sleep(0.01)
    stamped.messages, begin = 0, time.process_time()
    shard.send("go")
    await asyncio.to_thread(shard.recv)
    each = (time.process_time() - begin) / stamped.messages
    await asyncio.sleep(0.5)
    shard.send("end")
    lags = sorted(stamped.lags)
    return {
        "lag_p50_ms": lags[len(lags) // 2] * 1e3,
        "lag_p99_ms": lags[len(lags) * 99 // 100] * 1e3,
        "recovery_ms": sorted(recoveries)[2] * 1e3,
        "gateway_us_per_message": each * 1e6,
    }


async def recovery(address: Address) -> float:
    router = Router(RoutingConfig())
    known = router.join("a", time.monotonic())
    start = time.monotonic()
    link = await Link.open(address, 20.0)
    assert link is not None
    link.tell(router, "a")
    while not known.blocks.exact:
        await asyncio.sleep(0.0005)
    seconds = time.monotonic() - start
    link.close()
    return seconds


def publish(pipe: Connection, blocks: int) -> None:
    """A shard that stores a block every 20 ms."""
    config = EngineConfig()
    machine = Profile("none", Cost(0, 0, 0, 0, 0), 1, 16 * (blocks + EVENTS), 8192, ())
    engine = Engine("m", SimulatedExecutor(machine, config, range(10), 10), config, ())
    taken = engine.pool.take(blocks) or []
    engine.pool.publish(taken, [os.urandom(16) for _ in taken], 0, blocks)
    asyncio.run(serve(engine, pipe))


async def serve(engine: Engine, pipe: Connection) -> None:
    port = Port(ServedEngine(AsyncEngine(engine)), "a", report_s=0.05)
    pipe.send(await port.open("127.0.0.1"))
    await asyncio.to_thread(pipe.recv)
    await asyncio.to_thread(store, engine)
    pipe.send("done")
    await asyncio.to_thread(pipe.recv)
    await port.leave(0)
    port.engine.close()


def store(engine: Engine) -> None:
    for _ in range(EVENTS):
        engine.pool.publish(engine.pool.take(1) or [], [struct.pack("<dd", 0.0, time.monotonic())], 0, 1)
        time.sleep(EVERY)


if __name__ == "__main__":
    main()
