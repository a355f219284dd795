"""Blocks on their way between the cache and what else has them: a slower tier of this shard, and other shards.

Into the tier: blocks that nobody holds any more are copied, one a step and more while nothing runs, and a thread writes
them. What the cache gives up before that is copied before anything is written in its place, or dropped, where too much
waits to be written.

Into the cache (`arrivals`): a sequence that could begin, and for which the tier has more than the cache, or another
shard by what its router says, waits while a thread reads that; others run meanwhile and may overtake it. It then begins
as if the blocks had always been in the cache. Where several have them, they come from where that saves most.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Iterator
from collections.abc import Sequence as Items
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice

from octavo.cost_model import CostModel
from octavo.engine.arrivals import PEER_LOTS, UNKNOWN_SECONDS, Arrivals, lot_of
from octavo.engine.plan import StepPlan
from octavo.engine.queues import WaitingSequences
from octavo.engine.sequence import Sequence
from octavo.kvcache.block_pool import BlockPool, Prefix
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.tier import Bytes, KVBlocks, Peers, Tier, TierCounters

logger = logging.getLogger(__name__)

STAGED_BYTES = 2**28
"""Of the copies that wait to be written, at most."""

SAVING_SECONDS = 5.0
"""How long an engine that closes may write what its cache holds."""

GUESSED_SECONDS = 1 / 2**28
"""Per byte that comes from another shard, until one has been measured: a quarter of a gigabyte a second."""

_PAUSE = 0.005
"""Seconds that an engine with nothing else to do waits before it looks for new requests."""


class Fetches:
    """One engine's dealings with a tier and with other shards. All but reading and writing happens in its thread.

    Args:
        tier: what keeps blocks; None: nothing does.
        kv: the cache's content.
        pool: its blocks.

    Attributes:
        peers: other shards; None: none are asked.
        own: what comes from the tier.
    """

    def __init__(self, tier: Tier | None, kv: KVBlocks, pool: BlockPool, cost_model: CostModel) -> None:
        assert not pool.groups.windowed, "blocks that come from elsewhere have all layers"
        self.tier = tier
        self.peers: Peers | None = None
        self._kv, self._pool, self._cost_model = kv, pool, cost_model
        self._counters, self._of_peers = TierCounters(), TierCounters()
        self.own = None if tier is None else Arrivals(tier, kv, pool, cost_model, self._counters)
        self._others: dict[str, Arrivals] = {}  # by the name of the shard they come from
        self._warming: deque[tuple[str, deque[bytes]]] = deque()  # what is hot there
        self._lot, self._guess = lot_of(kv.block_bytes), kv.block_bytes * GUESSED_SECONDS
        self._unsaved: dict[bytes, int] = {}  # hash -> block that has lost its last owner
        self._writing: set[bytes] = set()
        self._saving: Future[None] | None = None  # what was begun last
        if tier is not None:
            pool.released, pool.tier = [], tier
        self._apart = False
        self._writer = ThreadPoolExecutor(1, "octavo-tier-writes")

    @property
    def active(self) -> bool:
        """Whether blocks are to come."""
        return bool(self._warming) or any(each.fetches for each in self._all())

    def tables(self) -> list[BlockTable]:
        """Those that own blocks which arrive."""
        return [fetch.table for each in self._all() for fetch in each.fetches]

    def _all(self) -> Iterator[Arrivals]:
        if self.own is not None:
            yield self.own
        yield from self._others.values()

    # ---- into the cache ---------------------------------------------------------------------------------------

    def begin_step(self, plan: StepPlan, waiting: WaitingSequences, *, idle: bool, apart: bool) -> None:
        """Have the cache say what it gives up for a step, and take in what has come before it is planned.

        Args:
            idle: whether nothing runs or waits.
            apart: whether who raises is being looked for: among those who wait for nothing.
        """
        if self.tier is not None:
            self._pool.evicted, plan.filling = plan.evicted, frozenset(plan.published)
        self._apart = apart
        if apart:
            self.stop(waiting)
        if self._warming:
            self._warm()
        if idle and (coming := [each.coming for each in self._all() if each.coming is not None]):
            wait(coming, _PAUSE, FIRST_COMPLETED)
        for each in self._all():
            each.poll(waiting)
        self._tell()

    def begin(self, seq: Sequence, cached: Prefix, waiting: WaitingSequences) -> str | None:
        """Have a sequence that could begin now wait for blocks instead, if somebody has any and that is worth it.

        Args:
            cached: what the cache has of it.
            waiting: from where it is taken, and where it is put when they have come.

        Returns:
            what it waits for.
        """
        chain, have = seq.reusable(self._pool), len(cached)
        if self._apart or seq.fetched or have >= len(chain):
            return None
        fetches = ((each, fetch) for each in self._all() for fetch in each.fetches)
        source, same = next((pair for pair in fetches if chain[have] in pair[1].chain), (None, None))
        if same is not None:
            same.sequences.append(seq)
        else:
            offers = [(each, more, each.ours(have, more)) for each, more in self._offers(seq, chain, have)]
            saved = [each.saving(more, ours) for each, more, ours in offers]
            if max(saved, default=0.0) <= 0:
                return None
            source, more, ours = offers[saved.index(max(saved))]
            if not source.begin(seq, chain[: have + more], cached, ours):
                return None
        waiting.leave(seq)
        return "its blocks arrive" if source is self.own else "its blocks come from another shard"

    def _offers(self, seq: Sequence, chain: list[bytes], have: int) -> Iterator[tuple[Arrivals, int]]:
        """Who has blocks after the first `have`, and how many."""
        if self.own is not None and self.tier is not None and (more := self.own.found(self.tier, chain[have:])):
            yield self.own, more
        placement = seq.group.request.placement
        if self.peers is None or placement is None or not placement.peer:
            return
        more = min(placement.peer_blocks, len(chain)) - have
        if more > 0 and (arrivals := self._from(self.peers, placement.peer)) is not None:
            yield arrivals, more

    def _from(self, peers: Peers, name: str) -> Arrivals | None:
        """What comes from another shard; those that have left are forgotten."""
        for gone in [each for each, it in self._others.items() if not it.fetches and peers.find(each) is not it.source]:
            self._others.pop(gone).close(wait=False)
        if name not in self._others and (source := peers.find(name)) is not None:
            made = Arrivals(source, self._kv, self._pool, self._cost_model, self._of_peers, PEER_LOTS)
            made.block_seconds = self._guess
            self._others[name] = made
        return self._others.get(name)

    def warm(self, name: str, hashes: Items[bytes]) -> None:
        """Have blocks come from another shard that nobody has asked for yet, as long as there are places which hold
        nothing: a lot at a time, while nothing that somebody waits for is to come."""
        self._warming.append((name, deque(hashes)))

    def bring(self, name: str, hashes: Items[bytes]) -> None:
        """Have blocks come from another shard, a prompt's that is computed there, before the request comes that wants
        them."""
        if self.peers is None or (arrivals := self._from(self.peers, name)) is None:
            return
        coming = {block_hash for fetch in arrivals.fetches for block_hash in fetch.chain}
        new = [each for each in hashes if each not in coming and self._pool.find(each) is None]
        if new:
            arrivals.begin(None, new, Prefix([[]]), UNKNOWN_SECONDS)

    def _warm(self) -> None:
        while self._warming and not any(each.fetches for each in self._all()):
            name, hashes = self._warming[0]
            lot: list[bytes] = []
            while hashes and len(lot) < self._lot:
                if self._pool.find(block_hash := hashes.popleft()) is None:
                    lot.append(block_hash)
            arrivals = None if self.peers is None else self._from(self.peers, name)
            if (
                not lot
                or arrivals is None
                or len(lot) > self._pool.num_blank
                or not arrivals.begin(None, lot, Prefix([[]]), UNKNOWN_SECONDS)
            ):
                self._warming.popleft()

    def stop(self, waiting: WaitingSequences) -> None:
        """Let everybody begin with what has come."""
        while self.give_up(waiting):
            pass

    def give_up(self, waiting: WaitingSequences) -> bool:
        """Let the last one who waits begin with what has come, for its blocks are needed; False where nobody waits."""
        busy = [each for each in self._all() if each.fetches]
        if busy:
            max(busy, key=lambda each: each.fetches[-1].begun).give_up(waiting)
        return bool(busy)

    @property
    def peer_seconds(self) -> tuple[float, float]:
        """That a block takes to come from another shard, and those of a prompt beside that, on average; 0.0 where none
        are asked."""
        known = [(each.block_seconds, each.start_seconds) for each in list(self._others.values())]
        if self.peers is None or not known:
            return (0.0 if self.peers is None else self._guess), 0.0
        return sum(block for block, _ in known) / len(known), sum(start for _, start in known) / len(known)

    # ---- into the tier ----------------------------------------------------------------------------------------

    def save(self, gone: Items[tuple[int, bytes]]) -> None:
        """Copy blocks that the cache gives up, for the thread to write; their content is certain.

        Args:
            gone: blocks and their hashes, a chain's last ones first.
        """
        if self.tier is None:
            return
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
        while self.tier is not None and self.tier.changes:
            came, block_hash = self.tier.changes.popleft()
            if self._pool.find(block_hash) is None:
                self._pool.events.append("stored" if came else "removed", (block_hash,))

    def _note_released(self) -> None:
        released = self._pool.released
        if released and self.tier is not None:
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
        assert self.tier is not None
        try:
            count = self.tier.write(hashes, copied())
        finally:
            self._writing.difference_update(hashes)
        self._counters.written += count
        self._counters.bytes_written += count * self._kv.block_bytes

    def stats(self) -> TierCounters:
        """Counts of the tier, now; another thread may call it."""
        return replace(self._counters, failures={} if self.tier is None else dict(self.tier.failures))

    def peer_stats(self) -> TierCounters:
        """Counts of what other shards were asked for, now; another thread may call it."""
        return replace(self._of_peers, failures={} if self.peers is None else dict(self.peers.failures))

    def close(self, *, certain: bool) -> None:
        """Give up the tier and leave the other shards.

        Args:
            certain: whether all that the cache holds is; it is kept then, as far as the time goes.
        """
        if self.peers is not None:
            self.peers.close()
        for each in self._all():
            each.close(wait=each is self.own)
        until = time.monotonic() + SAVING_SECONDS
        while certain and self.save_idle():
            if time.monotonic() > until:
                logger.warning("there was no time to keep all that the cache holds")
                break
        self._writer.shutdown()
        if self.tier is not None:
            self.tier.close()
        del self._kv  # an engine that is asleep is not to hold the cache's memory
