"""Blocks on their way into the cache from one source: a slower tier, or another shard.

The blocks are taken from the pool at once, come a few at a time, one lot a step, and are published as they come. What
does not come is computed.

    prompt   0 ...... in the cache ...... at the source ...... end
    blocks   [ found                ][ taken, arriving    ][ computed when it begins ]

Fetching is worth it where, by what this source's blocks took of late, it takes less time than computing by the cost
model. What takes longer than that all the same is given up, so a source that has become slow costs a request at most
what it was to save.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from octavo.cost_model import CostModel, attended
from octavo.engine.queues import WaitingSequences
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool, Prefix
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.tier import BlockSource, Bytes, KVBlocks, Tier, TierCounters

LOT_BYTES = 2**23
"""Of the blocks that are put into the cache between two steps: 2 to 3 ms of a CPU."""

PEER_LOTS = 8
"""That another shard is asked for at once: it comes to copying them between two of its steps, and these may be long."""

UNKNOWN_SECONDS = 10.0
"""How long blocks may take while it is not known what computing them takes."""

_NEWEST, _FORGOTTEN = 0.25, 0.98
"""Weight of the newest lot in what a block takes; and what a refusal leaves of that, so that it is tried again."""


def lot_of(block_bytes: int) -> int:
    """Blocks in a lot."""
    return max(1, LOT_BYTES // block_bytes)


def compute_seconds(cost_model: CostModel, start: int, count: int) -> float:
    """What `count` tokens after the first `start` ones of a sequence add to the steps that they are computed in."""
    if not cost_model.ready:
        return float("inf")
    cost = cost_model.coefficients
    return cost.token * count + cost.attended * attended(start, count)


class Lot(NamedTuple):
    """Blocks that the thread has read: the first `good` rows are as they were written."""

    data: Bytes
    good: int
    seconds: float

    def split(self, most: int) -> tuple[Lot, Lot | None]:
        """Its first blocks, so many, and the others."""
        if self.good <= most:
            return self, None
        first = self.seconds * most / len(self.data)
        return Lot(self.data[:most], most, first), Lot(self.data[most:], self.good - most, self.seconds - first)


@dataclass(slots=True, eq=False)
class Fetch:
    """Blocks that arrive.

    Attributes:
        sequences: that wait for them; none where they come for whoever asks next.
        chain: hashes, to the last block that is to come.
        table: the blocks themselves, those that the cache had among them.
        begun: when, by the engine's clock.
        late: when they are given up.
        asked: how many blocks of the chain are read, being read, or were there.
        wanted: blocks that are to come.
        alone: none was before it.
        rest: what has been read and not been put into the cache.
        failed: whether one of them did not come.
    """

    sequences: list[Sequence]
    chain: list[bytes]
    table: BlockTable
    begun: float
    late: float
    asked: int
    wanted: int
    alone: bool
    reads: deque[Future[Lot]] = field(default_factory=deque)
    rest: Lot | None = None
    failed: bool = False

    @property
    def missing(self) -> int:
        """Blocks that have not come."""
        return len(self.chain) - self.table.num_published

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, or nobody wants it."""
        unwanted = bool(self.sequences) and all(seq.ended for seq in self.sequences)
        return not self.missing or self.failed or unwanted


class Arrivals:
    """What is fetched from one source, one fetch after the other. All but reading happens in the engine's thread.

    Args:
        source: what has blocks.
        kv: the cache's content.
        pool: its blocks.
        counters: where it is counted.
        lots: that are read at once.

    Attributes:
        fetches: the first of them is read.
        block_seconds: what a block took of late; 0.0 where that is not known.
        start_seconds: what those of one sequence took beside that: the question, and the steps in between.
        seen: is told what decisions here depend on and a recording does not know: what the source has, whether it is
            worth fetching, what has come and what is over.
    """

    def __init__(
        self,
        source: BlockSource,
        kv: KVBlocks,
        pool: BlockPool,
        cost_model: CostModel,
        counters: TierCounters,
        lots: int = 1,
    ) -> None:
        self.source = source
        self.fetches: list[Fetch] = []
        self.block_seconds = self.start_seconds = 0.0
        self.seen: Callable[[int], None] = lambda _: None
        self._kv, self._pool, self._cost_model, self._counters = kv, pool, cost_model, counters
        self._lot, self._lots = lot_of(kv.block_bytes), lots
        self._reader = ThreadPoolExecutor(1, "octavo-kv-reads")

    def found(self, tier: Tier, chain: list[bytes]) -> int:
        """How many of a chain's first blocks the source has, which is a tier."""
        found = tier.lookup(chain)
        self.seen(found)
        return found

    def ours(self, have: int, more: int) -> float:
        """Seconds that computing `more` blocks of a prompt takes, of which the cache has `have`."""
        return compute_seconds(self._cost_model, have * self._pool.block_size, more * self._pool.block_size)

    def saving(self, more: int, ours: float) -> float:
        """Seconds that it would save to fetch so many blocks which are computed in `ours`; where that is nothing, the
        source is tried again one day."""
        blocks = more + sum(fetch.missing for fetch in self.fetches)
        if (saved := ours - self.start_seconds - blocks * self.block_seconds) <= 0:
            self.block_seconds *= _FORGOTTEN
            self.start_seconds *= _FORGOTTEN
        self.seen(int(saved > 0))
        return saved

    def begin(self, seq: Sequence | None, chain: list[bytes], cached: Prefix, seconds: float) -> bool:
        """Have blocks read; False where they have no room.

        Args:
            seq: for which they are; None: for whoever asks next.
            chain: hashes, to the last block that is to come.
            cached: the blocks that are there.
            seconds: after which they are given up.
        """
        have, size = len(cached), self._pool.block_size
        table = BlockTable(self._pool, cached)
        if table.grow(have * size, len(chain) * size) is None:
            table.free()
            return False
        now = time.monotonic()
        late = now + min(seconds, UNKNOWN_SECONDS)
        more, alone = len(chain) - have, not self.fetches
        self.fetches.append(Fetch([] if seq is None else [seq], chain, table, now, late, have, more, alone))
        if seq is not None:
            seq.fetched = True  # it waits once, and then begins with what has come
        self._counters.wanted += more
        self._read_on()
        return True

    def poll(self, waiting: WaitingSequences) -> None:
        """Take in a lot that has come, and let those begin who have all that will come."""
        if not self.fetches:
            return
        first = self.fetches[0]
        if (lot := self._came(first)) is not None:
            self._take(first, lot)
        now = time.monotonic()
        for fetch in self._over(now):
            self._end(fetch, waiting, now)
        self._read_on()

    @property
    def coming(self) -> Future[Lot] | None:
        """The lot that is to come next."""
        first = self.fetches[0] if self.fetches else None
        return first.reads[0] if first is not None and first.rest is None and first.reads else None

    def _came(self, fetch: Fetch) -> Lot | None:
        """The next lot of a fetch, if it is there."""
        if (lot := fetch.rest) is None and fetch.reads[0].done():
            lot = fetch.reads.popleft().result()
        if lot is not None:
            lot, fetch.rest = lot.split(self._lot)
        self.seen(-1 if lot is None else lot.good)
        return lot

    def _over(self, now: float) -> list[Fetch]:
        """Fetches of which nothing more comes, or too late."""
        found = [place for place, each in enumerate(self.fetches) if each.is_over or now > each.late]
        for number in (len(found), *found):
            self.seen(number)
        return [self.fetches[place] for place in found]

    def give_up(self, waiting: WaitingSequences) -> None:
        """Let the last one who waits begin with what has come."""
        self._end(self.fetches[-1], waiting, 0.0)
        self._read_on()

    def _read_on(self) -> None:
        """Have the first fetch be read on, twice what is read at once."""
        first = self.fetches[0] if self.fetches else None
        while first is not None and len(first.reads) < 2 and first.asked < len(first.chain):
            hashes = first.chain[first.asked : first.asked + self._lot * self._lots]
            first.asked += len(hashes)
            first.reads.append(self._reader.submit(self._read, hashes))

    def _read(self, hashes: list[bytes]) -> Lot:
        begin = time.perf_counter()
        data = np.empty((len(hashes), self._kv.block_bytes), np.uint8)
        count = self.source.read(hashes, data)
        return Lot(data, count, time.perf_counter() - begin)

    def _take(self, fetch: Fetch, lot: Lot) -> None:
        begin = time.perf_counter()
        have = fetch.table.num_published
        self._kv.write(fetch.table.blocks[have : have + lot.good], lot.data[: lot.good])
        fetch.table.publish(fetch.chain, (have + lot.good) * self._pool.block_size)
        fetch.failed = lot.good < len(lot.data)
        seconds = (lot.seconds + time.perf_counter() - begin) / len(lot.data)
        weight = _NEWEST * min(1.0, len(lot.data) / self._lot)  # of a few blocks, most is the question's
        self.block_seconds += (seconds - self.block_seconds) * (weight if self.block_seconds else 1.0)
        self._counters.came += lot.good
        self._counters.bytes_read += lot.good * self._kv.block_bytes

    def _end(self, fetch: Fetch, waiting: WaitingSequences, now: float) -> None:
        """Everybody who waits for a fetch goes on."""
        self.fetches.remove(fetch)
        for read in fetch.reads:
            read.cancel()
        if now > fetch.late:
            self.source.failures["late"] += fetch.missing
            self.block_seconds = max(self.block_seconds, (now - fetch.begun) / len(fetch.chain))
        elif fetch.alone and not fetch.missing:
            beside = max(0.0, now - fetch.begun - fetch.wanted * self.block_seconds)
            self.start_seconds += (beside - self.start_seconds) * (_NEWEST if self.start_seconds else 1.0)
        self._counters.read_seconds += time.monotonic() - fetch.begun
        fetch.table.free()
        for seq in fetch.sequences:
            if not seq.ended:
                waiting.join(seq)

    def close(self, *, wait: bool) -> None:
        """Read nothing more.

        Args:
            wait: for what is being read.
        """
        self._reader.shutdown(wait, cancel_futures=True)
