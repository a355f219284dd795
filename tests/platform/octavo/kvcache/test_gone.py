"""Which blocks were evicted lately, and for whom."""

from __future__ import annotations

from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.gone import Gone, GoneBlocks


def test_the_oldest_are_forgotten():
    gone = GoneBlocks(most=2)
    for name in (b"a", b"b", b"c"):
        gone.add(name)
    assert [gone.find(name) for name in (b"a", b"c")] == [None, Gone(0.0, "")]


def test_a_pool_says_for_whom_a_block_went():
    pool = BlockPool(2, 16)
    blocks = pool.take(2)
    assert blocks is not None
    pool.publish(blocks, [b"first", b"second"], 0, 2)
    pool.release(blocks)
    pool.gone.time, pool.gone.taker = 3.0, "other"
    pool.take(1)
    assert pool.gone.find(b"second") == Gone(3.0, "other")
    assert pool.gone.find(b"first") is None
