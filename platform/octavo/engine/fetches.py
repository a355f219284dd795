"""Blocks on their way between the cache and a slower tier.

Into the tier: blocks that nobody holds any more are copied, one a step and more while nothing runs, and a thread writes
them. What the cache gives up before that is copied before anything is written in its place, or dropped, where too much
waits to be written.

Out of it: a sequence that could begin, and for which the tier has more than the cache, waits while a thread reads that;
others run meanwhile and may overtake it. The blocks are taken from the pool at once, come a few at a time, one lot a
step, and are published as they come: the sequence then begins as if they had always been in the cache. What does not
come is computed.

    prompt   0 ...... in the cache ...... in the tier ...... end
    blocks   [ found                ][ taken, arriving  ][ computed when it begins ]

Fetching is worth it where, by what blocks took of late, it takes less time than computing by the cost model. What takes
longer than that all the same is given up, so a tier that has become slow costs a request at most what it was to save.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from octavo.cost_model import CostModel, attended
from octavo.engine.plan import StepPlan
from octavo.engine.queues import WaitingSequences
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.tier import Bytes, KVBlocks, Tier, TierCounters

logger = logging.getLogger(__name__)

LOT_BYTES = 2**23
"""Of the blocks that are read at once and put into the cache between two steps: 2 to 3 ms of a CPU."""

STAGED_BYTES = 2**28
"""Of the copies that wait to be written, at most."""

UNKNOWN_SECONDS = 10.0
"""How long blocks may take while it is not known what computing them takes."""

SAVING_SECONDS = 5.0
"""How long an engine that closes may write what its cache holds."""

_PAUSE = 0.005
"""Seconds that an engine with nothing else to do waits before it looks for new requests."""

_NEWEST, _FORGOTTEN = 0.25, 0.98
"""Weight of the newest lot in what a block takes; and what a refusal leaves of that, so that it is tried again."""


class Lot(NamedTuple):
    """Blocks that the thread has read: the first `good` rows are as they were written."""

    data: Bytes
    good: int
    seconds: float


@dataclass(slots=True, eq=False)
class Fetch:
    """Blocks that arrive.

    Attributes:
        sequences: that wait for them, the one that they are read for first.
        chain: hashes, to the last block that is to come.
        table: the blocks themselves, those that the cache had among them.
        begun: when, by the engine's clock.
        late: when they are given up.
        asked: how many blocks of the chain are read, being read, or were there.
        failed: whether one of them did not come.
    """

    sequences: list[Sequence]
    chain: list[bytes]
    table: BlockTable
    begun: float
    late: float
    asked: int
    reads: deque[Future[Lot]] = field(default_factory=deque)
    failed: bool = False

    @property
    def missing(self) -> int:
        """Blocks that have not come."""
        return len(self.chain) - self.table.num_published

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, or nobody wants it."""
        return not self.missing or self.failed or all(seq.ended for seq in self.sequences)


class Fetches:
    """One engine's dealings with a tier. All but reading and writing happens in the engine's thread.

    Args:
        tier: what keeps blocks.
        kv: the cache's content.
        pool: its blocks.

    Attributes:
        seen: is told what decisions here depend on and a recording does not know: what the tier has, whether it is
            worth fetching, what has come and what is over.
    """

    def __init__(self, tier: Tier, kv: KVBlocks, pool: BlockPool, cost_model: CostModel) -> None:
        self.tier = tier
        self._kv, self._pool, self._cost_model = kv, pool, cost_model
        self._lot = max(1, LOT_BYTES // kv.block_bytes)
        self._fetches: list[Fetch] = []  # the first of them is read
        self._unsaved: dict[bytes, int] = {}  # hash -> block that has lost its last owner
        self._writing: set[bytes] = set()
        self._saving: Future[None] | None = None  # what was begun last
        pool.released, pool.tier = [], tier
        self._apart = False
        self._block_seconds = 0.0
        self._reader = ThreadPoolExecutor(1, "octavo-tier-reads")
        self._writer = ThreadPoolExecutor(1, "octavo-tier-writes")
        self._counters = TierCounters()
        self.seen: Callable[[int], None] = lambda _: None

    @property
    def active(self) -> bool:
        """Whether anybody waits for blocks."""
        return bool(self._fetches)

    def tables(self) -> list[BlockTable]:
        """Those that own blocks which arrive."""
        return [fetch.table for fetch in self._fetches]

    # ---- out of the tier --------------------------------------------------------------------------------------

    def begin_step(self, plan: StepPlan, waiting: WaitingSequences, *, idle: bool, apart: bool) -> None:
        """Have the cache say what it gives up for a step, and take in what has come before it is planned.

        Args:
            idle: whether nothing runs or waits.
            apart: whether who raises is being looked for: among those who wait for nothing.
        """
        self._pool.evicted, plan.filling = plan.evicted, frozenset(plan.published)
        self._apart = apart
        if apart:
            self.stop(waiting)
        self._poll(waiting, idle)
        self._tell()

    def begin(self, seq: Sequence, cached: list[int], waiting: WaitingSequences) -> bool:
        """Have a sequence that could begin now wait for blocks instead, if the tier has any and that is worth it.

        Args:
            cached: what the cache has of it.
            waiting: from where it is taken, and where it is put when they have come.
        """
        chain, have = seq.reusable(self._pool), len(cached)
        if self._apart or seq.fetched or have >= len(chain):
            return False
        if (same := next((each for each in self._fetches if chain[have] in each.chain), None)) is not None:
            same.sequences.append(seq)
        elif not (more := self._found(chain[have:])) or not self._begin(seq, chain[: have + more], cached):
            return False
        waiting.leave(seq)
        return True

    def _begin(self, seq: Sequence, chain: list[bytes], cached: list[int]) -> bool:
        have, size = len(cached), self._pool.block_size
        ours = compute_seconds(self._cost_model, have * size, (len(chain) - have) * size)
        if not self._is_worth(len(chain) - have, ours):
            return False
        table = BlockTable(self._pool, cached)
        if table.grow(have * size, len(chain) * size) is None:
            table.free()
            return False
        now = time.monotonic()
        self._fetches.append(Fetch([seq], chain, table, now, now + min(ours, UNKNOWN_SECONDS), have))
        self._counters.wanted += len(chain) - have
        self._read_on()
        return True

    def _found(self, chain: list[bytes]) -> int:
        """How many of a chain's first blocks the tier has."""
        found = self.tier.lookup(chain)
        self.seen(found)
        return found

    def _is_worth(self, blocks: int, ours: float) -> bool:
        """Whether so many blocks come before they are computed in `ours` seconds."""
        blocks += sum(fetch.missing for fetch in self._fetches)
        if not (worth := blocks * self._block_seconds < ours):
            self._block_seconds *= _FORGOTTEN
        self.seen(int(worth))
        return worth

    def _poll(self, waiting: WaitingSequences, idle: bool) -> None:
        """Take in a lot that has come, and let those begin who have all that will come."""
        if not self._fetches:
            return
        first = self._fetches[0]
        if (lot := self._came(first, idle)) is not None:
            self._take(first, lot)
        now = time.monotonic()
        for fetch in self._over(now):
            self._end(fetch, waiting, now)
        self._read_on()

    def _came(self, fetch: Fetch, idle: bool) -> Lot | None:
        """The next lot of a fetch, if it is there."""
        if idle:
            wait([fetch.reads[0]], _PAUSE)
        lot = fetch.reads.popleft().result() if fetch.reads[0].done() else None
        self.seen(-1 if lot is None else lot.good)
        return lot

    def _over(self, now: float) -> list[Fetch]:
        """Fetches of which nothing more comes, or too late."""
        found = [place for place, each in enumerate(self._fetches) if each.is_over or now > each.late]
        for number in (len(found), *found):
            self.seen(number)
        return [self._fetches[place] for place in found]

    def stop(self, waiting: WaitingSequences) -> None:
        """Let everybody begin with what has come."""
        while self.give_up(waiting):
            pass

    def give_up(self, waiting: WaitingSequences) -> bool:
        """Let the last one who waits begin with what has come, for its blocks are needed; False where nobody waits."""
        if self._fetches:
            self._end(self._fetches[-1], waiting, 0.0)
            self._read_on()
            return True
        return False

    def _read_on(self) -> None:
        """Have two lots of the first fetch be read."""
        first = self._fetches[0] if self._fetches else None
        while first is not None and len(first.reads) < 2 and first.asked < len(first.chain):
            hashes = first.chain[first.asked : first.asked + self._lot]
            first.asked += len(hashes)
            first.reads.append(self._reader.submit(self._read, hashes))

    def _read(self, hashes: list[bytes]) -> Lot:
        begin = time.perf_counter()
        data = np.empty((len(hashes), self._kv.block_bytes), np.uint8)
        count = self.tier.read(hashes, data)
        return Lot(data, count, time.perf_counter() - begin)

    def _take(self, fetch: Fetch, lot: Lot) -> None:
        begin = time.perf_counter()
        have = fetch.table.num_published
        self._kv.write(fetch.table.blocks[have : have + lot.good], lot.data[: lot.good])
        fetch.table.publish(fetch.chain, (have + lot.good) * self._pool.block_size)
        fetch.failed = lot.good < len(lot.data)
        seconds = (lot.seconds + time.perf_counter() - begin) / len(lot.data)
        self._block_seconds += (seconds - self._block_seconds) * (_NEWEST if self._block_seconds else 1.0)
        self._counters.came += lot.good
        self._counters.bytes_read += lot.good * self._kv.block_bytes

    def _end(self, fetch: Fetch, waiting: WaitingSequences, now: float) -> None:
        """Everybody who waits for a fetch goes on, the one that it was for not to another one before it has begun."""
        self._fetches.remove(fetch)
        for read in fetch.reads:
            read.cancel()
        if now > fetch.late:
            self.tier.failures["late"] += fetch.missing
            self._block_seconds = max(self._block_seconds, (now - fetch.begun) / len(fetch.chain))
        self._counters.read_seconds += time.monotonic() - fetch.begun
        fetch.table.free()
        fetch.sequences[0].fetched = True
        for seq in fetch.sequences:
            if not seq.ended:
                waiting.join(seq)

    # ---- into the tier ----------------------------------------------------------------------------------------

    def save(self, gone: Items[tuple[int, bytes]]) -> None:
        """Copy blocks that the cache gives up, for the thread to write; their content is certain.

        Args:
            gone: blocks and their hashes, a chain's last ones first.
        """
        new = [(block, h) for block, h in gone if h not in self._writing and not self.tier.lookup([h])]
        room = max(0, STAGED_BYTES // self._kv.block_bytes - len(self._writing))
        if (dropped := len(new) - room) > 0:
            self.tier.failures["busy"] += dropped
            new = new[dropped:]
        if not new:
            return
        hashes = [h for _, h in new]
        self._writing.update(hashes)
        self._saving = self._writer.submit(self._write, hashes, self._kv.read([block for block, _ in new]))

    def save_one(self, filling: Container[int]) -> None:
        """Copy the block that has waited longest, if none is being written.

        Args:
            filling: blocks that steps fill which are in flight or about to be launched.
        """
        self._note_released()
        if self._unsaved and not self._writing:
            self.save(self._next_unsaved(1, filling))

    @property
    def unsaved(self) -> bool:
        """Whether `save_idle` has anything to do."""
        return bool(self._unsaved or self._pool.released)

    def save_idle(self) -> bool:
        """While no step is in flight: copy a lot, if none is being written; False where nothing is left to copy."""
        self._tell()
        self._note_released()
        if self._saving is not None:
            wait([self._saving], _PAUSE)
        if self._saving is None or self._saving.done():
            self.save(self._next_unsaved(self._lot, ()))
        return self.unsaved

    def _tell(self) -> None:
        """Tell the cache's listeners what the tier has taken in, and what is nowhere any more."""
        while self.tier.changes:
            came, block_hash = self.tier.changes.popleft()
            if self._pool.find(block_hash) is None:
                self._pool.events.append("stored" if came else "removed", (block_hash,))

    def _note_released(self) -> None:
        released = self._pool.released
        if released:
            self._unsaved |= {h: block for block, h in released if not self.tier.lookup([h])}
            released.clear()

    def _next_unsaved(self, most: int, filling: Container[int]) -> list[tuple[int, bytes]]:
        """Those that wait longest, are in the cache yet, with an owner or without, and are not being filled."""
        found: list[tuple[int, bytes]] = []
        for block_hash, block in list(islice(self._unsaved.items(), most)):
            del self._unsaved[block_hash]
            if self._pool.find(block_hash) != block:
                continue
            if block in filling:
                self._unsaved[block_hash] = block
            else:
                found.append((block, block_hash))
        return found

    def _write(self, hashes: list[bytes], copied: Callable[[], Bytes]) -> None:
        try:
            count = self.tier.write(hashes, copied())
        finally:
            self._writing.difference_update(hashes)
        self._counters.written += count
        self._counters.bytes_written += count * self._kv.block_bytes

    def stats(self) -> TierCounters:
        """Counts, now; another thread may call it."""
        return replace(self._counters, failures=dict(self.tier.failures))

    def close(self, *, certain: bool) -> None:
        """Give up the tier.

        Args:
            certain: whether all that the cache holds is; it is kept then, as far as the time goes.
        """
        self._reader.shutdown(cancel_futures=True)
        until = time.monotonic() + SAVING_SECONDS
        while certain and self.save_idle():
            if time.monotonic() > until:
                logger.warning("there was no time to keep all that the cache holds")
                break
        self._writer.shutdown()
        self.tier.close()


def compute_seconds(cost_model: CostModel, start: int, count: int) -> float:
    """What `count` tokens after the first `start` ones of a sequence add to the steps that they are computed in."""
    if not cost_model.ready:
        return float("inf")
    cost = cost_model.coefficients
    return cost.token * count + cost.attended * attended(start, count)
