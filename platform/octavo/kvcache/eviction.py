"""Which cached blocks go first when space is short: those that are least likely to be asked for soon.

Most blocks never come back, and those that came back once are likelier to do so again: of the Mooncake trace's blocks
24 % are asked for a second time, of these 42 % a third, then 50, 58, 65 %. So blocks are classed by how often they came
back, and for each class it is learned, as requests come, how often a block of some age is asked for:

    hits    0 1 2 3+       ages in blocks that the pool has given out since, in buckets
    chance  per class and age  =  came back at that age / were there at that age

A block's worth is its Gittins index (Gittins 1979): the best rate of returns per place and time that keeping it for
some further time can give. The block with the least worth goes. What was released together is a chain and goes from
its tail on, for a block is of no use without those that it builds on; so only the tails of each class' oldest chains
are compared. (A prompt's beginning that others have asked for since is in their chain. It may go first, and did for 6
of 250,000 blocks of the trace.) Blocks that are gone are remembered for a while by their hashes: what comes back after
it went was worth keeping too.

A tenant may have a share of the pool (`Keeper`). While more blocks than that are cached of what its requests released
last, its oldest chain goes before anybody else's blocks, whatever they are worth; while there is room nothing goes.

Blocks of layers with a window that a sequence has passed go before all others, the oldest first: only a prompt that
leaves this one's text just there asks for them. Those that came back are as good as others.

Where nothing is known, classes are alike and the least recently released goes, as it does unless another is clearly
worth less. On the whole Mooncake trace with the memory of eight H100s in one pool this hits 1.27 times what that order
does, with half of the memory 2.04 times, with three times as much 1.05 times (docs/routing.md).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from octavo.request import Request

CLASSES = 4
"""By hits: 0, 1, 2, and more."""

BUCKETS, PER_POOL = 32, 4
"""Buckets of ages, and how many of them the pool's blocks are: an age is known up to eight times the pool."""

LEAST_BUCKET = 64
"""Blocks: what is learned at the end of a bucket takes 0.4 ms."""

GHOSTS = 4
"""Blocks that are remembered after they went, in multiples of the pool: 200 bytes each. With 2, half of the gain is
lost where the pool holds little of what comes back."""

MOST_GHOSTS = 2**18
"""Of what has millions of places: 50 MB."""

_KEPT = 0.99
"""What observations weigh a bucket later."""

_PRIOR = 50.0
"""Observations that all classes together count for in each of them."""

_CLEARLY = 0.9
"""How much less than the oldest chain's a tail's worth must be. Without it noise costs up to 6 % of the hits of loads
in which hits say nothing."""

_AT_ONCE = 16
"""Most blocks of a chain, and of one class, that go before others are looked at."""


class Keeper(NamedTuple):
    """A tenant that may keep a share of the pool cached, in (0, 1]."""

    tenant: str
    share: float

    @classmethod
    def of(cls, request: Request) -> Keeper | None:
        """A request's; None for one whose tenant has no share."""
        return None if request.cache_share is None else cls(request.tenant, request.cache_share)


class Chain:
    """Blocks that were released together, in the order in which they build on each other.

    Attributes:
        number: counts releases.
        bucket: in which they were released.
        blocks: those that may still be cached; some have an owner again.
        kept: by a tenant with a share; None: by anybody else.
    """

    __slots__ = ("blocks", "bucket", "kept", "number")

    def __init__(self, number: int, bucket: int, blocks: list[int], kept: _Kept | None) -> None:
        self.number, self.bucket, self.blocks, self.kept = number, bucket, blocks, kept


class _Kept:
    """What is cached of a tenant with a share.

    Attributes:
        most: blocks that it may keep.
        count: blocks that are cached.
        chains: the oldest first; nothing may be left of some.
    """

    __slots__ = ("chains", "count", "most")

    def __init__(self) -> None:
        self.most = self.count = 0
        self.chains: deque[Chain] = deque()


class CachedBlocks:
    """The blocks of a pool that have no owner and a content that may be asked for.

    Args:
        num_blocks: of the pool.
    """

    def __init__(self, num_blocks: int) -> None:
        self._chain: list[Chain | None] = [None] * num_blocks
        self._class = [0] * num_blocks
        self._tails: list[list[tuple[int, Chain]]] = [[] for _ in range(CLASSES)]  # heaps, the oldest chain first
        self._ghosts: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # hash -> class and bucket
        self._returns = Returns(max(LEAST_BUCKET, num_blocks // PER_POOL))
        self._count = self._released = 0
        self._going: Chain | None = None
        self._of: int | None = None  # class of the blocks that go
        self._left = 0
        self._kept: dict[str, _Kept] = {}  # by tenant, of those with a share
        self._over: dict[_Kept, None] = {}  # those that have more, whoever was first
        self._passed: deque[Chain] = deque()  # the oldest first; nothing may be left of some

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return (block for block, chain in enumerate(self._chain) if chain is not None)

    def come(self, block: int, block_hash: bytes) -> None:
        """A block has got a content: one that was here before, perhaps."""
        ghost = self._ghosts.pop(block_hash, None)
        if ghost is None:
            self._class[block] = 0
            return
        self._returns.came_back(*ghost)
        self._class[block] = min(ghost[0] + 1, CLASSES - 1)

    def hits(self, block: int) -> int:
        """How often a block has come back, as far as that is counted; with an owner or not."""
        return self._class[block]

    def found(self, block: int) -> None:
        """A prompt has asked for a block; with an owner or not (then `take_back` follows)."""
        if (chain := self._chain[block]) is not None:
            self._returns.came_back(self._class[block], chain.bucket)
        self._class[block] = min(self._class[block] + 1, CLASSES - 1)

    def keep(self, blocks: list[int], keeper: Keeper | None = None, *, passed: bool = False) -> None:
        """Blocks have lost their last owner; each builds on the one before it.

        Args:
            keeper: the owner's tenant, if it has a share.
            passed: whether they have left its window.
        """
        if passed:
            blocks = self._keep_passed(blocks)
        if not blocks:
            return
        self._released += 1
        chain = Chain(self._released, self._returns.bucket, blocks, None)
        if keeper is not None:
            self._keep_for(keeper, chain)
        for block in blocks:
            self._chain[block] = chain
            self._returns.begins(self._class[block])
        self._count += len(blocks)
        heappush(self._tails[self._class[blocks[-1]]], (chain.number, chain))
        if sum(map(len, self._tails)) > 2 * self._count + 1024:
            self._forget_empty()

    def _keep_passed(self, blocks: list[int]) -> list[int]:
        """Put those aside that never came back; returns the others."""
        chain = Chain(0, -BUCKETS, [block for block in blocks if not self._class[block]], None)  # too old to learn from
        for block in chain.blocks:
            self._chain[block] = chain
        self._count += len(chain.blocks)
        self._passed.append(chain)
        return [block for block in blocks if self._class[block]]

    def take_back(self, block: int) -> None:
        """A block has an owner again, or its content counts no more."""
        chain = self._chain[block]
        if chain is not None and (kept := chain.kept) is not None:
            kept.count -= 1
            if kept.count <= kept.most:
                self._over.pop(kept, None)
        self._chain[block] = None
        self._count -= 1

    def evict(self, hashes: Sequence[bytes | None]) -> int:
        """The block that goes. There must be one.

        Args:
            hashes: of the pool's blocks.
        """
        chain = self._oldest_passed() if self._passed else None
        chain = chain or (self._usual() if not self._over else self._of_who_has_more())
        block = chain.blocks.pop()
        self.take_back(block)
        if (block_hash := hashes[block]) is not None:
            self._ghosts[block_hash] = self._class[block], chain.bucket
            if len(self._ghosts) > min(GHOSTS * len(self._chain), MOST_GHOSTS):
                self._ghosts.popitem(last=False)
        return block

    def _oldest_passed(self) -> Chain | None:
        while self._passed and self._tail(self._passed[0]) is None:
            self._passed.popleft()
        return self._passed[0] if self._passed else None

    def given_out(self) -> None:
        """The pool has given a block to a new owner: this is what ages are counted in."""
        self._returns.given_out()

    # ---- shares -----------------------------------------------------------------------------------------------

    def _keep_for(self, keeper: Keeper, chain: Chain) -> None:
        kept = chain.kept = self._kept.setdefault(keeper.tenant, _Kept())
        kept.most = int(keeper.share * len(self._chain))
        kept.count += len(chain.blocks)
        if len(kept.chains) > 2 * kept.count + 64:
            kept.chains = deque(each for each in kept.chains if self._tail(each) is not None)
        kept.chains.append(chain)
        if kept.count > kept.most:
            self._over[kept] = None

    def _of_who_has_more(self) -> Chain:
        """The oldest chain of a tenant that has more than its share."""
        chains = next(iter(self._over)).chains
        while self._tail(chains[0]) is None:
            chains.popleft()
        return chains[0]

    # ---- tails ------------------------------------------------------------------------------------------------

    def _tail(self, chain: Chain) -> int | None:
        """The class of a chain's last cached block; None where none is left."""
        blocks = chain.blocks
        while blocks and self._chain[blocks[-1]] is not chain:
            blocks.pop()
        return self._class[blocks[-1]] if blocks else None

    def _oldest(self, of: int) -> Chain | None:
        """The oldest chain whose tail is of a class."""
        heap = self._tails[of]
        while heap:
            number, chain = heap[0]
            tail = self._tail(chain)
            if tail == of:
                return chain
            heappop(heap)
            if tail is not None:
                heappush(self._tails[tail], (number, chain))
        return None

    def _usual(self) -> Chain:
        """The chain whose tail goes, whoever's it is."""
        chain = self._going
        if chain is None or not self._left or self._tail(chain) != self._of:
            chain, self._left = self._choose(), _AT_ONCE
            self._of = self._tail(chain)
        self._going, self._left = chain, self._left - 1
        return chain

    def _choose(self) -> Chain:
        while not (found := self._oldest_of_all()):
            pass  # the last chain has gone over to a class that was looked at before
        worth, _, chain = min(found, key=lambda each: each[1])
        least, _, other = min(found, key=lambda each: each[:2])
        return other if least < _CLEARLY * worth else chain

    def _oldest_of_all(self) -> list[tuple[float, int, Chain]]:
        """The oldest chain of each class: its worth and number, and itself."""
        chains = [(each, self._oldest(each)) for each in range(CLASSES)]
        return [(self._returns.worth(each, c.bucket), c.number, c) for each, c in chains if c is not None]

    def _forget_empty(self) -> None:
        """Chains none of whose blocks is left."""
        for heap in self._tails:
            heap[:] = [entry for entry in heap if self._tail(entry[1]) is not None]
            heapify(heap)


class Returns:
    """How often blocks come back, by class and age.

    Args:
        width: blocks given out in a bucket.

    Attributes:
        bucket: the present one.
    """

    def __init__(self, width: int) -> None:
        self.bucket = 0
        self._width, self._given = width, 0
        self._came_back = [[0.0] * BUCKETS for _ in range(CLASSES)]
        self._were_there = [[0.0] * BUCKETS for _ in range(CLASSES)]
        self._away = [[0] * BUCKETS for _ in range(CLASSES)]  # by age: those that have not come back
        self._worth = [[0.0] * (BUCKETS + 1) for _ in range(CLASSES)]  # of what is older than all buckets: 0

    def begins(self, of: int) -> None:
        """A block of a class is cached from now on."""
        self._were_there[of][0] += 1
        self._away[of][0] += 1

    def came_back(self, of: int, since: int) -> None:
        """Such a block, cached since a bucket, was asked for."""
        age = self.bucket - since
        if age < BUCKETS:
            self._came_back[of][age] += 1
            self._away[of][age] -= 1

    def worth(self, of: int, since: int) -> float:
        """Returns per place and bucket."""
        return self._worth[of][min(self.bucket - since, BUCKETS)]

    def given_out(self) -> None:
        """A block was given out."""
        self._given += 1
        if self._given == self._width:
            self._given = 0
            self._next_bucket()

    def _next_bucket(self) -> None:
        self.bucket += 1
        for away, there in zip(self._away, self._were_there, strict=True):
            away.insert(0, 0)
            away.pop()
            for age in range(1, BUCKETS):
                there[age] += away[age]
        self._learn()
        for counts in (*self._came_back, *self._were_there):
            counts[:] = [_KEPT * count for count in counts]

    def _learn(self) -> None:
        came, there = ([sum(column) for column in zip(*counts, strict=True)]
                       for counts in (self._came_back, self._were_there))  # fmt: skip
        usual = [(c + 0.5) / (t + _PRIOR) for c, t in zip(came, there, strict=True)]
        for of in range(CLASSES):
            counts = zip(self._came_back[of], self._were_there[of], usual, strict=True)
            chances = [min(0.999, (c + _PRIOR * prior) / (t + _PRIOR)) for c, t, prior in counts]
            self._worth[of][:BUCKETS] = [_index(chances[age:]) for age in range(BUCKETS)]


def _index(chances: Sequence[float]) -> float:
    """The Gittins index of what comes back in the next buckets with these chances, and is gone then."""
    best = returned = kept = 0.0
    away = 1.0
    for chance in chances:
        returned, kept, away = returned + away * chance, kept + away, away * (1 - chance)
        best = max(best, returned / kept)
    return best
