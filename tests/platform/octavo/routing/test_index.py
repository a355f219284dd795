"""The index against the cache it mirrors, whatever gets lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.kvcache.block_pool import BlockPool
from octavo.routing.index import BlockIndex, Chain, ShardBlocks, keys_of


def block(number: int) -> bytes:
    return (number << 4).to_bytes(8, "little").rjust(16, b"\0")


def hear(index: ShardBlocks, pool: BlockPool, *, lost: bool = False) -> None:
    events = pool.events.take()
    if events and not lost:
        index.changes(events[0].sequence, [(event.kind, event.hashes) for event in events])


def listen(index: ShardBlocks, pool: BlockPool, parts: int = 1) -> None:
    sequence, hashes = pool.snapshot()
    for part in range(parts):
        index.part(sequence, part, parts, hashes[part::parts])


STEPS = st.one_of(
    st.tuples(st.just("store"), st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)),
    st.tuples(st.just("free"), st.integers(0, 10)),
    st.tuples(st.sampled_from(["clear", "hear", "lose", "repeat", "resync", "torn"]), st.integers(1, 3)),
)


@given(st.lists(STEPS, max_size=60))
def test_exact_means_equal(steps: list[tuple[str, object]]) -> None:
    """A pool of 12 blocks that evicts all the time; events are heard, lost, repeated; snapshots come whole and torn."""
    pool, index, owned = BlockPool(12, 4), ShardBlocks(100), []
    last: list[object] = []
    for action, value in steps:
        if action == "store":
            assert isinstance(value, list)
            blocks = pool.take(len(value))
            if blocks is not None:
                pool.publish(blocks, [block(number) for number in value], 0, len(value))
                owned.append(blocks)
        elif action == "free" and owned:
            assert isinstance(value, int)
            pool.release(owned.pop(value % len(owned)))
        elif action == "clear":
            pool.clear_cache()
        elif action == "hear":
            events = pool.events.take()
            if events:
                last = [events[0].sequence, [(event.kind, event.hashes) for event in events]]
                index.changes(*last)  # type: ignore[arg-type]
        elif action == "lose":
            pool.events.take()
        elif action == "repeat" and last:
            index.changes(*last)  # type: ignore[arg-type]
        elif action == "resync":
            assert isinstance(value, int)
            listen(index, pool, value)
        elif action == "torn":
            index.part(pool.snapshot()[0], 1, 2, [block(99)])
    hear(index, pool)
    pool.events.append("stored", (block(98),))  # whatever was lost before shows now
    hear(index, pool)
    truth = set(keys_of([*pool.snapshot()[1], block(98)]))
    assert not index.exact or index.keys == truth
    listen(index, pool)
    assert index.exact
    assert index.keys | set(keys_of([block(98)])) == truth


def test_a_snapshot_that_shows_later_events_already_is_right_in_the_end() -> None:
    """The shard's thread may take it while the engine goes on: events 1 and 2 are in it and come again."""
    index = ShardBlocks(100)
    index.part(1, 0, 1, [block(7)])  # true at number 3: event 1 stored 5 and 7, event 2 removed 5
    index.changes(1, [("stored", [block(5), block(7)]), ("removed", [block(5)])])
    assert index.exact
    assert index.keys == set(keys_of([block(7)]))


def test_before_a_snapshot_nothing_is_believed() -> None:
    index = ShardBlocks(100)
    index.changes(0, [("stored", [block(1)])])
    assert not index.exact
    assert index.keys == set()


def test_a_gap_is_counted_and_the_old_set_stays_in_use() -> None:
    index = ShardBlocks(100)
    index.part(0, 0, 1, [block(1)])
    index.changes(3, [("stored", [block(2)])])
    assert (index.exact, index.gaps, index.keys) == (False, 1, set(keys_of([block(1)])))


@pytest.mark.parametrize("by", ["snapshot", "events"])
def test_memory_is_bounded_and_what_is_left_out_is_only_missed(by: str) -> None:
    index = ShardBlocks(10)
    many = [block(number) for number in range(25)]
    if by == "snapshot":
        index.part(0, 0, 1, many)
    else:
        index.part(0, 0, 1, [])
        index.changes(0, [("stored", many[:4]), ("stored", many[4:])])
    assert len(index) == len(index.keys) == 10
    assert index.keys < set(keys_of(many))
    assert index.skipped == 15
    index.changes(0 if by == "snapshot" else 2, [("cleared", []), ("stored", many[:3])])
    assert index.keys == set(keys_of(many[:3]))


@pytest.mark.parametrize(
    ("held", "coming", "length"),
    [("", "", 0), ("abc", "", 3), ("acd", "", 1), ("bcd", "", 0), ("ac", "b", 3), ("", "abcd", 4), ("abcdef", "", 4)],
)
def test_only_an_unbroken_prefix_counts(held: str, coming: str, length: int) -> None:
    blocks = ShardBlocks(100)
    blocks.part(0, 0, 1, [block(ord(each)) for each in held])
    blocks.expect([block(ord(each)) for each in coming])
    found = blocks.index.prefixes(Chain([block(ord(each)) for each in "abcd"]))
    assert found == ([(length, blocks.bit)] if length else [])


def test_bits_that_are_out_of_use_are_swept_and_given_out_again() -> None:
    """Two shards of one index: the one is cleared and sent anew all the time, the other only tells."""
    index = BlockIndex()
    one, other = ShardBlocks(1000, index), ShardBlocks(1000, index)
    other.part(0, 0, 1, [block(number) for number in range(0, 300, 2)])
    for number in range(3000):
        one.part(number, 0, 1, [block(number % 7), block(number % 300)])
        one.expect([block(1)])
        other.changes(number, [("stored", [block(number % 300)]), ("removed", [block(number % 300)])][number % 2 :][:1])
    assert index.width <= 2 + 2 * 512 + 2  # a round of the sweep takes 512 messages
    assert one.keys == set(keys_of([block(2999 % 7), block(2999 % 300)]))
    assert other.keys == set(keys_of(block(number) for number in range(0, 300, 2)))
    one.leave()
    assert all(set(index.owners(bits).tolist()) == {-1} for _, bits in index.prefixes(Chain([block(1)])))
    for number in range(3000, 3000 + 3 * 512):
        other.changes(number, [("stored", [block(0)])])
    assert sum(len(part) for part in index._parts) == 150
