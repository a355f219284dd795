"""The pool of KV blocks: who owns which, which can be shared by hash, which go first when space is short.

Every block is in exactly one of three states, and `check_integrity` proves it:

    blank    no owner, no content worth keeping
    cached   no owner, but published under a hash: reusable by an equal prefix until evicted, see `eviction`
    owned    one or more owners (reference count >= 1); published or not
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from octavo.block_hash import hash_in_group
from octavo.kvcache.events import EventLog
from octavo.kvcache.eviction import CLASSES, CachedBlocks, Keeper
from octavo.kvcache.gone import GoneBlocks
from octavo.kvcache.state_pool import StatePool
from octavo.kvcache.tier import Tier
from octavo.layer_groups import ONE_GROUP, LayerGroups


@dataclass(slots=True)
class Prefix:
    """Blocks of a prefix, which has `len` blocks of tokens.

    Attributes:
        tables: of each group of layers; entries of windowed groups before `first` mean nothing.
        first: as in `BlockTable`.
    """

    tables: list[list[int]]
    first: int = 0

    def __len__(self) -> int:
        return len(self.tables[0])

    def blocks(self, groups: LayerGroups) -> list[int]:
        """All of them."""
        first = self.first
        return [block for table in self.tables[: groups.whole] for block in table] + [
            block for table in self.tables[groups.whole :] for block in table[first:]
        ]


class BlockPool:
    """Reference-counted blocks with a hash index.

    A block of the first group of layers is published under the hash of its tokens, one of another group under what
    `hash_in_group` makes of that.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens per block.
        caching: keep published blocks for reuse; without it every freed block is blank.
        states: of a model that has recurrent layers: a prefix is found as far as there is a checkpoint of it.
        groups: of layers, each of which has blocks of its own.

    Attributes:
        evicted: where published blocks are noted, with their hashes, that are given to a new owner; None: nowhere.
        released: where published blocks are noted, with their hashes, that have lost their last owner, a chain's last
            ones first; None: nowhere.
        tier: where blocks may be as well: to listeners they are stored then, too.
        gone: those that were evicted lately.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        caching: bool = True,
        states: StatePool | None = None,
        groups: LayerGroups = ONE_GROUP,
    ) -> None:
        self.groups = replace(groups, layers=())
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self.states = states
        self.events = EventLog()
        self.evicted: list[tuple[int, bytes]] | None = None
        self.tier: Tier | None = None
        self.released: list[tuple[int, bytes]] | None = None
        self.gone = GoneBlocks()
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack: low ids first
        self._cached = CachedBlocks(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that `take` can hand out (blank or evictable)."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks without an owner whose content can still be reused."""
        return len(self._cached)

    @property
    def num_owned(self) -> int:
        """Blocks that some sequence holds."""
        return self.num_blocks - self.num_free

    def has_room(self, blocks: int, states: int) -> bool:
        """Whether so many blocks can be handed out, and as many states where sequences have any."""
        return blocks <= self.num_free and (self.states is None or states <= self.states.num_free)

    def take(self, count: int) -> list[int] | None:
        """Give `count` blocks to a new owner, evicting cached ones if need be; None when there are not enough."""
        if count > self.num_free:
            return None
        return [self._take_one() for _ in range(count)]

    def share(self, block: int) -> None:
        """Add an owner to a block that has one."""
        self._references[block] += 1

    def reuse(self, block: int) -> None:
        """Add an owner, whose prompt `match` has found in it, to a block that is owned or cached."""
        self._cached.found(block)
        if self._references[block] == 0:
            self._cached.take_back(block)
        self._references[block] += 1

    def release(self, blocks: Sequence[int], keeper: Keeper | None = None, *, passed: bool = False) -> None:
        """Take one owner away from each block of a sequence, which come in its order.

        The tail goes first when space is short: a prefix outlives what was built on it.

        Args:
            keeper: the owner's tenant, if it has a share of the pool.
            passed: whether they have left its window.
        """
        cached: list[int] = []
        for block in blocks:
            self._references[block] -= 1
            if self._references[block] == 0:
                (self._blank if self._hashes[block] is None else cached).append(block)
        self._cached.keep(cached, keeper, passed=passed)
        if self.released is not None:
            self.released += [(block, h) for block in reversed(cached) if (h := self._hashes[block]) is not None]

    def is_owned(self, block: int) -> bool:
        """Whether the block has an owner."""
        return self._references[block] > 0

    def is_visible(self, block: int) -> bool:
        """Whether others than one owner read the block, or can find it by its hash: it must not be written."""
        return self._references[block] > 1 or self._hashes[block] is not None

    def match(self, chain: Sequence[bytes]) -> Prefix:
        """The longest prefix of `chain` that all layers can go on from (nobody's yet: see `reuse`)."""
        groups = self.groups
        if groups.count == 1 and groups.whole:
            return Prefix([self.stored(chain) if self.states is None else self._with_state(chain, self.states)])
        whole = [self.stored(chain, group) for group in range(groups.whole)]
        most = min(map(len, whole), default=len(chain))
        length = groups.usable(most, self.block_size, lambda i, group: hash_in_group(chain[i], group) in self._index)
        first = groups.first(length * self.block_size, self.block_size)
        seen = chain[first:length]
        tables = [table[:length] for table in whole]
        tables += [
            [0] * first + [self._index[hash_in_group(h, group)] for h in seen]
            for group in range(groups.whole, groups.count)
        ]
        return Prefix(tables, first)

    def _with_state(self, chain: Sequence[bytes], states: StatePool) -> list[int]:
        found = self.stored(chain)
        while found and states.find(chain[len(found) - 1]) is None:
            found.pop()
        return found

    def stored(self, chain: Sequence[bytes], group: int = 0) -> list[int]:
        """The first blocks of a chain in a group of layers, as far as they are published."""
        found: list[int] = []
        for block_hash in chain:
            block = self._index.get(hash_in_group(block_hash, group) if group else block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def publish(
        self, blocks: Sequence[int], chain: Sequence[bytes], start: int, stop: int, group: int = 0
    ) -> list[int]:
        """Make blocks start..stop of a sequence's table of a group findable under their hashes.

        A hash that is published already keeps its first block; the later copy stays private to its owner.

        Returns:
            the blocks that were published.
        """
        if not self.caching:
            return []
        published, stored = [], []
        for i in range(start, stop):
            key = hash_in_group(chain[i], group) if group else chain[i]
            if key not in self._index:
                self._index[key] = blocks[i]
                self._hashes[blocks[i]] = key
                self._cached.come(blocks[i], key)
                published.append(blocks[i])
                stored.append(key)
        if stored:
            self.events.append("stored", tuple(stored))
        return published

    def unpublish(self, blocks: Iterable[int]) -> None:
        """Take blocks out of the hash index whose content was perhaps never written; owners keep them.

        A block that is not published is left as it is.
        """
        removed = []
        for block in blocks:
            block_hash = self._hashes[block]
            if block_hash is None:
                continue
            del self._index[block_hash]
            self._hashes[block] = None
            removed.append(block_hash)
            self._drop_state(block_hash)
            if not self._references[block]:
                self._cached.take_back(block)
                self._blank.append(block)
        if removed:
            self.events.append("removed", tuple(removed))

    def clear_cache(self) -> None:
        """Forget every published hash; owned blocks stay with their owners."""
        self._blank.extend(self._cached)
        self._cached = CachedBlocks(self.num_blocks)
        self._index.clear()
        self._hashes = [None] * self.num_blocks
        if self.states is not None:
            self.states.clear()
        self.events.append("cleared")

    def find(self, block_hash: bytes) -> int | None:
        """The block that is published under a hash."""
        return self._index.get(block_hash)

    def hash_of(self, block: int) -> bytes | None:
        """The hash under which a block is published."""
        return self._hashes[block]

    @property
    def num_blank(self) -> int:
        """Blocks that hold nothing."""
        return len(self._blank)

    def hottest(self, most: int) -> list[bytes]:
        """Hashes of the blocks that came back most often, and of those that never did the last ones.

        A block comes after those that it builds on, for these came back as often.
        """
        found: list[list[bytes]] = [[] for _ in range(CLASSES)]
        for block_hash, block in self._index.items():
            found[self._cached.hits(block)].append(block_hash)
        hot = [block_hash for each in reversed(found[1:]) for block_hash in each][:most]
        return hot + found[0][max(0, len(found[0]) + len(hot) - most) :]

    def snapshot(self) -> tuple[int, list[bytes]]:
        """The next event's sequence number and every published hash: where a new listener starts.

        Another thread may call it: the number is read first, so the list can only be newer, and the events from that
        number on lead to the same set whether or not the list shows their effect already.
        """
        sequence = self.events.next_sequence
        lower = [] if self.tier is None else [h for h in self.tier.hashes() if h not in self._index]
        return sequence, [*list(self._index), *lower]

    def check_integrity(self, owned: Iterable[Sequence[int]]) -> None:
        """Prove that blank + cached + owned = total and that reference counts equal the owners.

        Args:
            owned: the blocks of every living owner.

        Raises:
            AssertionError: with the sum that is wrong.
        """
        counts = Counter(block for blocks in owned for block in blocks)
        wrong = {b: (n, counts[b]) for b, n in enumerate(self._references) if n != counts[b]}
        assert not wrong, f"reference counts differ from owners (block: counted, owners): {wrong}"
        states = [*self._blank, *self._cached, *counts]
        assert sorted(states) == list(range(self.num_blocks)), "a block is in no state or in two"
        published = {h: b for b, h in enumerate(self._hashes) if h is not None}
        assert published == self._index, "hash index and blocks disagree"
        assert all(self._hashes[b] is not None for b in self._cached), "a cached block has no hash"
        assert all(self._hashes[b] is None for b in self._blank), "a blank block has a hash"

    def _take_one(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block = self._cached.evict(self._hashes)
            evicted = self._hashes[block]
            assert evicted is not None
            del self._index[evicted]
            self._hashes[block] = None
            if self.tier is None or not self.tier.lookup((evicted,)):
                self.events.append("removed", (evicted,))
            if self.evicted is not None:
                self.evicted.append((block, evicted))
            self.gone.add(evicted)
            self._drop_state(evicted)
        self._references[block] = 1
        self._cached.given_out()
        return block

    def _drop_state(self, block_hash: bytes) -> None:
        if self.states is not None:
            self.states.drop(block_hash)
