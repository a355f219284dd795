import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.block_hash import hash_chain, root_hash
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.eviction import Keeper

SIZE = 4
ROOT = root_hash("m")
KEEPERS = st.sampled_from([None, Keeper("a", 0.2), Keeper("b", 0.5)])


class Pool(RuleBasedStateMachine):
    """Any order of grow, publish, fork, free and clear keeps the sums, and events rebuild the index."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(12, SIZE)
        self.tables: list[tuple[BlockTable, list[int]]] = []
        self.heard: set[bytes] = set()
        self.next_event = 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=24), keeper=KEEPERS)
    def start(self, tokens, keeper):
        chain = hash_chain(ROOT, tokens, SIZE)
        table = BlockTable(self.pool, self.pool.match(chain[: (len(tokens) - 1) // SIZE]), keeper)
        if table.grow(table.num_published * SIZE, len(tokens)) is None:
            table.free()
        else:
            table.publish(chain, len(tokens))
            self.tables.append((table, tokens))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def extend(self, data, more):
        table, tokens = data.draw(st.sampled_from(self.tables))
        before = list(table.blocks)
        copies = table.grow(len(tokens), len(tokens) + len(more))
        if copies is None:
            assert list(table.blocks) == before
            return
        tokens += more
        table.publish(hash_chain(ROOT, tokens, SIZE), len(tokens))
        assert len(table.blocks) == -(-len(tokens) // SIZE)
        assert all(source in before and target not in before for source, target in copies)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def shrink(self, data):
        """Then a sequence goes on otherwise: what others read stays as it is."""
        table, tokens = data.draw(st.sampled_from(self.tables))
        keep = data.draw(st.integers(0, len(tokens)))
        table.shrink(keep)
        del tokens[keep:]
        assert len(table.blocks) == -(-keep // SIZE)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def unpublish(self, data):
        table, _ = data.draw(st.sampled_from(self.tables))
        blocks = list(table.blocks)
        self.pool.unpublish(blocks)
        assert not any(block in self.pool._index.values() for block in blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data):
        table, tokens = data.draw(st.sampled_from(self.tables))
        self.tables.append((table.fork(), list(tokens)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data):
        table, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        table.free()

    @rule()
    def clear(self):
        self.pool.clear_cache()

    @invariant()
    def sums_agree(self):
        self.pool.check_integrity([table.blocks for table, _ in self.tables])

    @invariant()
    def shares_agree(self):
        cached = self.pool._cached
        for kept in cached._kept.values():
            assert kept.count == sum(chain is not None and chain.kept is kept for chain in cached._chain)
            assert (kept in cached._over) == (kept.count > kept.most)

    @invariant()
    def events_rebuild_the_index(self):
        for event in self.pool.events.take():
            assert event.sequence == self.next_event
            self.next_event += 1
            if event.kind == "stored":
                self.heard |= set(event.hashes)
            elif event.kind == "removed":
                self.heard -= set(event.hashes)
            else:
                self.heard.clear()
        assert self.pool.snapshot() == (self.next_event, list(self.pool._index))
        assert self.heard == set(self.pool.snapshot()[1])


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = Pool.TestCase


def filled(pool: BlockPool, tokens: list[int]) -> BlockTable:
    table = BlockTable(pool)
    assert table.grow(0, len(tokens)) == []
    table.publish(hash_chain(ROOT, tokens, SIZE), len(tokens))
    return table


def test_the_least_recently_freed_goes_first_and_tails_before_heads():
    pool = BlockPool(4, SIZE)
    old, new = filled(pool, [0] * 8), filled(pool, [1] * 8)
    old.free()
    new.free()
    chains = {name: hash_chain(ROOT, [name] * 8, SIZE) for name in (0, 1)}
    assert pool.num_cached == 4
    for left in ((1, 2), (0, 2), (0, 1), (0, 0)):
        pool.take(1)
        assert tuple(len(pool.match(chains[name])) for name in (0, 1)) == left


def test_a_second_copy_of_a_prefix_stays_private():
    pool = BlockPool(4, SIZE)
    first, second = filled(pool, [0] * 8), filled(pool, [0] * 8)
    assert pool.match(hash_chain(ROOT, [0] * 8, SIZE)).tables == [list(first.blocks)]
    second.free()
    assert (pool.num_cached, pool.num_free) == (0, 2)


def test_a_leak_is_found():
    pool = BlockPool(4, SIZE)
    table = filled(pool, [0] * 5)
    with pytest.raises(AssertionError, match="reference counts differ"):
        pool.check_integrity([])
    pool.check_integrity([table.blocks])


def test_what_came_back_most_often_is_hottest_and_a_prefix_comes_before_what_builds_on_it():
    pool = BlockPool(12, SIZE)
    chains = [hash_chain(ROOT, [number] * 4 * SIZE, SIZE) for number in range(2)]
    for chain, times in zip(chains, (1, 3), strict=True):
        for _ in range(times):
            table = BlockTable(pool, pool.match(chain[:3]))
            table.grow(table.num_published * SIZE, 4 * SIZE)
            table.publish(chain, 4 * SIZE)
            table.free()
    assert pool.num_blank == 4
    assert pool.hottest(100) == [*chains[1][:3], *chains[0], chains[1][3]]
    assert pool.hottest(4) == [*chains[1][:3], chains[1][3]]
    assert pool.hottest(2) == chains[1][:2]
    assert pool.hottest(0) == []
