"""How many prompt tokens the prefix cache hits, beside one that lets the least recently used block go, and the bounds.

.venv/bin/python examples/benchmark_eviction.py
.venv/bin/python examples/benchmark_eviction.py --trace mooncake_conversation.jsonl    (github.com/kvcache-ai/Mooncake)

A trace has a line of JSON per request: `input_length`, and `hash_ids` of its blocks of 512 tokens. Without one, chats,
agents and others are made. Requests come one after the other: it is the order of eviction that is compared.
"""

from __future__ import annotations

import argparse
import json
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import nlargest
from itertools import takewhile
from pathlib import Path

from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable

SIZE = 512
"""Tokens of a block."""

Load = list[tuple[list[bytes], int]]
"""Of each request its blocks, and its tokens."""


class Ours:
    """The engine's pool."""

    def __init__(self, load: Load, blocks: int) -> None:
        self._pool = BlockPool(blocks, 1)

    def ask(self, chain: list[bytes]) -> int:
        """Blocks that are found of a request, which is computed then."""
        found = self._pool.match(chain)
        table = BlockTable(self._pool, found)
        if table.grow(len(found), len(chain)) is not None:
            table.publish(chain, len(chain))
        table.free()
        self._pool.events.take()
        return len(found)


class LeastRecent:
    """The least recently used goes first, of a chain its tail."""

    def __init__(self, load: Load, blocks: int) -> None:
        self._kept, self._blocks = dict[bytes, None](), blocks

    def ask(self, chain: list[bytes]) -> int:
        found = sum(1 for _ in takewhile(self._kept.__contains__, chain))
        for each in reversed(chain):
            self._kept.pop(each, None)
            self._kept[each] = None
        for each in list(self._kept)[: max(0, len(self._kept) - self._blocks)]:
            del self._kept[each]
        return found


class Clairvoyant:
    """What comes back last goes first (Belady 1966)."""

    def __init__(self, load: Load, blocks: int) -> None:
        self._kept, self._blocks, self._now = dict[bytes, int](), blocks, -1
        self._uses: dict[bytes, list[int]] = defaultdict(list)
        for i, (chain, _) in enumerate(load):
            for each in chain:
                self._uses[each].append(i)

    def ask(self, chain: list[bytes]) -> int:
        self._now += 1
        found = sum(1 for _ in takewhile(self._kept.__contains__, chain))
        for each in chain:
            uses = self._uses[each]
            place = bisect_right(uses, self._now)
            self._kept[each] = uses[place] if place < len(uses) else 1 << 60
        for each in nlargest(len(self._kept) - self._blocks, self._kept, key=self._kept.__getitem__):
            del self._kept[each]
        return found


def share(load: Load, cache: Ours | LeastRecent | Clairvoyant) -> float:
    """Of all prompt tokens those that are found."""
    hit = sum(min(SIZE * cache.ask(chain), tokens) for chain, tokens in load)
    return hit / sum(tokens for _, tokens in load)


# ---- loads --------------------------------------------------------------------------------------------------------


def trace(path: Path) -> Load:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [([str(each).encode() for each in row["hash_ids"]], row["input_length"]) for row in rows]


def chats(rng: random.Random, count: int, turns: float, grow: float, prompts: int = 3) -> Load:
    """200 conversations take turns; each begins with one of a few system prompts of four blocks."""
    live: list[tuple[list[bytes], int]] = []
    load: Load = []
    while len(load) < count:
        while len(live) < 200:
            system = rng.randrange(prompts)
            live.append(([f"system {system} {i}".encode() for i in range(4)], 1 + int(rng.expovariate(1 / turns))))
        chain, left = live.pop(rng.randrange(len(live)))
        chain = [*chain, *(rng.randbytes(8) for _ in range(1 + int(rng.expovariate(1 / grow))))]
        load.append((chain, SIZE * len(chain)))
        if left > 1:
            live.append((chain, left - 1))
    return load


def agents(rng: random.Random, count: int) -> Load:
    """40 agents with long tool prompts go on in quick steps; every fifth time somebody asks once about a document."""
    live: list[tuple[list[bytes], int]] = []
    load: Load = []
    while len(load) < count:
        while len(live) < 40:
            tools = rng.randrange(8)
            live.append(([f"tools {tools} {i}".encode() for i in range(12)], rng.randrange(5, 25)))
        chain, left = live.pop(rng.randrange(len(live)))
        for _ in range(rng.randrange(1, 4)):
            chain, left = [*chain, *(rng.randbytes(8) for _ in range(rng.randrange(1, 3)))], left - 1
            load.append((chain, SIZE * len(chain)))
        if rng.random() < 0.2:
            load.append(([rng.randbytes(8) for _ in range(26)], SIZE * 26))
        if left > 0:
            live.append((chain, left))
    return load


def documents(rng: random.Random, count: int, power: float) -> Load:
    """Each request reads one of 2,000 documents, some much oftener than others (Zipf)."""
    weights = [1 / (i + 1) ** power for i in range(2000)]
    chosen = rng.choices(range(2000), weights, k=count)
    return [([f"{each} {i}".encode() for i in range(8)], SIZE * 8) for each in chosen]


def recent(rng: random.Random, count: int) -> Load:
    """What was read lately is read again: the order of recency is right."""
    stack: list[int] = []
    load: Load = []
    for new in range(count):
        depth = int(rng.expovariate(1 / 300))
        stack.append(stack.pop(len(stack) - 1 - depth) if depth < len(stack) else new)
        load.append(([f"{stack[-1]} {i}".encode() for i in range(8)], SIZE * 8))
    return load


MADE: dict[str, Callable[[random.Random, int], Load]] = {
    "chats of 6 turns": lambda rng, count: chats(rng, count, 6, 3),
    "chats of 2 turns": lambda rng, count: chats(rng, count, 1, 3),
    "agents": agents,
    "documents, Zipf 1.0": lambda rng, count: documents(rng, count, 1.0),
    "documents, Zipf 0.6": lambda rng, count: documents(rng, count, 0.6),
    "recently read": recent,
}


def loads(path: Path | None, count: int) -> Iterator[tuple[str, Load]]:
    if path is not None:
        yield path.name, trace(path)
        return
    for name, make in MADE.items():
        yield name, make(random.Random(0), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--requests", type=int, default=6000, help="of each load that is made")
    parser.add_argument("--blocks", type=int, nargs="+", help="of the pool; by default shares of the load's blocks")
    args = parser.parse_args()
    print(f"{'load':24} {'blocks':>7} {'LRU':>7} {'ours':>7} {'ratio':>6} {'best':>7}")
    for name, load in loads(args.trace, args.requests):
        different = len({block for chain, _ in load for block in chain})
        for blocks in args.blocks or [different // 50, different // 20, different // 10, different // 4]:
            lru, ours, best = (share(load, kind(load, blocks)) for kind in (LeastRecent, Ours, Clairvoyant))
            ratio = ours / lru if lru else 1.0
            print(f"{name:24.24} {blocks:7} {lru:7.4f} {ours:7.4f} {ratio:6.3f} {best:7.4f}", flush=True)


if __name__ == "__main__":
    main()
