"""One sequence's blocks: grown on demand, copied before a shared one is written, freed by one call."""

from __future__ import annotations

from octavo.block_hash import hash_chain, root_hash
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable

SIZE = 4


def test_it_grows_by_whole_blocks_when_they_are_needed():
    pool = BlockPool(4, SIZE)
    table = BlockTable(pool)
    for tokens, blocks in ((1, 1), (4, 1), (5, 2), (8, 2), (16, 4)):
        assert table.grow(0, tokens) == []
        assert len(table.blocks) == blocks
    before = list(table.blocks)
    assert table.grow(0, 17) is None
    assert list(table.blocks) == before
    table.free()
    assert (pool.num_free, list(table.blocks)) == (4, [])


def test_a_fork_copies_the_last_block_when_one_of_the_two_writes():
    pool = BlockPool(4, SIZE)
    table = BlockTable(pool)
    table.grow(0, 6)
    fork = table.fork()
    assert list(fork.blocks) == list(table.blocks)
    ((source, target),) = fork.grow(6, 7) or [(-1, -1)]
    assert (source, fork.blocks[1]) == (table.blocks[1], target)
    assert fork.blocks[0] == table.blocks[0]
    assert table.grow(6, 7) == []  # the other one owns its block alone now
    pool.check_integrity([table.blocks, fork.blocks])


def test_a_fork_that_finds_no_block_to_copy_to_changes_nothing():
    pool = BlockPool(1, SIZE)
    table = BlockTable(pool)
    table.grow(0, 2)
    fork = table.fork()
    assert fork.grow(2, 3) is None
    pool.check_integrity([table.blocks, fork.blocks])


def test_only_full_blocks_are_published_each_once():
    pool, tokens = BlockPool(4, SIZE), list(range(10))
    chain = hash_chain(root_hash("m"), tokens, SIZE)
    table = BlockTable(pool)
    table.grow(0, len(tokens))
    for known, published in ((3, 0), (4, 1), (7, 1), (10, 2)):
        table.publish(chain, known)
        assert (table.num_published, pool.match(chain).tables) == (published, [list(table.blocks[:published])])
    cached = BlockTable(pool, pool.match(chain))
    assert (list(cached.blocks), cached.num_published) == (list(table.blocks[:2]), 2)
    cached.free()
    table.free()
    pool.check_integrity([])
