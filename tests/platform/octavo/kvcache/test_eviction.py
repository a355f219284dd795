import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.eviction import BUCKETS, LEAST_BUCKET, CachedBlocks, Keeper, Returns, _index


def ask(pool: BlockPool, chain: list[bytes], keeper: Keeper | None = None) -> int:
    """Compute a prompt of one block per token; returns how many were found."""
    found = pool.match(chain)
    table = BlockTable(pool, found, keeper)
    assert table.grow(len(found), len(chain)) is not None
    table.publish(chain, len(chain))
    table.free()
    pool.events.take()
    return len(found)


def chain(name, length=8):
    return [f"{name} {i}".encode() for i in range(length)]


def hits(requests, num_blocks):
    pool = BlockPool(num_blocks, 1)
    return [ask(pool, each) for each in requests]


def test_what_comes_back_outlives_what_comes_once():
    """Thirty documents are read again and again beside twice as many that nobody reads twice: at first fewer than half
    of their blocks are found, as many as the order of last use finds; then most."""
    rng = random.Random(1)
    requests = []
    for turn in range(60):
        read = [chain(f"kept {i}") for i in range(30)] + [chain(f"once {turn} {i}") for i in range(60)]
        rng.shuffle(read)
        requests += read
    found = hits(requests, 400)
    assert sum(found[90:180]) < 30 * 8 * 0.5
    assert sum(found[-10 * 90 :]) > 10 * 30 * 8 * 0.8


def test_a_load_that_changes_is_learned_anew():
    requests = [chain(f"{kind} {i % 30}") for kind in ("early", "late") for i in range(600)]
    assert sum(hits(requests, 400)[-30:]) == 30 * 8


def test_what_came_back_after_it_went_is_kept():
    """It is remembered by its hash, as often as it came back before."""
    cached = CachedBlocks(2)
    hashes: list[bytes | None] = [b"a", b"b"]
    for expected in (0, 1, 2, 3, 3):
        cached.come(0, b"a")
        assert cached._class[0] == expected
        cached.keep([0])
        assert cached.evict(hashes) == 0
    cached.come(1, b"b")
    assert cached._class[1] == 0


def test_who_has_more_than_its_share_loses_its_own_oldest_blocks_first():
    pool, small = BlockPool(40, 1), Keeper("small", 0.25)
    prompts = [chain(f"small {i}") for i in range(3)]
    for prompt in (prompts[0], chain("other", 16), *prompts[1:]):
        ask(pool, prompt, None if prompt[0] == b"other 0" else small)
    assert pool.num_cached == 40, "while there is room everybody keeps what he has"
    for turn in range(20):
        ask(pool, chain(f"small new {turn}"), small)
    assert ask(pool, chain("other", 16)) == 16
    assert ask(pool, chain("small new 19"), small) == 8, "what is newest stays within the share"
    assert ask(pool, prompts[0], small) == 0


def test_within_its_share_a_tenant_is_like_all_others():
    """Each has read its documents twenty times; a third floods the pool with what nobody reads again."""
    pool, rng = BlockPool(200, 1), random.Random(1)
    own = {Keeper(name, 0.4): [chain(f"{name} {i}") for i in range(8)] for name in "ab"}
    read = [(each, keeper) for keeper, chains in own.items() for each in chains] * 20
    rng.shuffle(read)
    flood = Keeper("flood", 0.1)
    for number, (each, keeper) in enumerate(read):
        ask(pool, each, keeper)
        ask(pool, chain(f"flood {number}", 30), flood)
    assert [ask(pool, each, keeper) for keeper, chains in own.items() for each in chains] == [8] * 16
    kept = pool._cached._kept["flood"]
    assert kept.count <= 200 - 2 * 64
    assert len(kept.chains) < 2 * 200 + 64


def test_chains_of_a_share_that_are_gone_are_forgotten():
    pool = BlockPool(16, 1)
    for _ in range(1000):
        ask(pool, chain("system", 4), Keeper("a", 0.5))
    assert len(pool._cached._kept["a"].chains) <= 64 + 2 * 4 + 1


def test_ghosts_are_bounded():
    pool = BlockPool(4, 1)
    for i in range(100):
        ask(pool, chain(i, 3))
    assert len(pool._cached._ghosts) == 16


def test_chains_that_are_gone_are_forgotten():
    """A prompt that is released and found again without end leaves nothing behind."""
    pool = BlockPool(16, 1)
    for _ in range(5000):
        ask(pool, chain("system", 4))
    assert sum(map(len, pool._cached._tails)) <= 1024 + 2 * 4


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(6, 12))
def test_what_was_released_together_goes_from_its_tail_on(names, num_blocks):
    """Whatever was learned: of prompts that share nothing with others only beginnings are left."""
    pool = BlockPool(num_blocks, 1)
    pool._cached._returns = Returns(4)  # learns with every fourth block
    for name in names:
        ask(pool, chain(name, name + 1))
        for asked in (chain(each, each + 1) for each in range(6)):
            assert sum(each in pool._index for each in asked) == len(pool.match(asked))


def test_the_worth_of_a_block_is_what_it_can_return():
    returns = Returns(LEAST_BUCKET)
    for of in (0, 1):
        for _ in range(400):
            returns.begins(of)
    for _ in range(LEAST_BUCKET):
        returns.given_out()
    for of, comes in ((0, 1), (1, 3)):  # of four blocks, in the next bucket
        for _ in range(100 * comes):
            returns.came_back(of, 0)
    for _ in range(LEAST_BUCKET):
        returns.given_out()
    assert returns.bucket == 2
    assert returns.worth(1, 0) > returns.worth(0, 0) > 0
    assert returns.worth(0, returns.bucket - BUCKETS - 5) == 0
    assert returns.worth(3, 2) == pytest.approx(returns.worth(2, 2))  # of both nothing is known


@given(st.lists(st.floats(0, 0.9), min_size=1, max_size=8))
def test_the_index_is_the_best_rate_of_all_times_to_wait(chances):
    best = 0.0
    for end in range(1, len(chances) + 1):
        away, returned, kept = 1.0, 0.0, 0.0
        for chance in chances[:end]:
            kept += away
            returned += away * chance
            away *= 1 - chance
        best = max(best, returned / kept)
    assert _index(chances) == pytest.approx(best)
    assert _index(chances) >= chances[0] - 1e-12
