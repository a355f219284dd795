"""Block events: numbered, bounded, and announced when the first one waits."""

from __future__ import annotations

from octavo.block_hash import hash_chain, root_hash
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable
from octavo.kvcache.events import BlockEvent, EventLog

ROOT = root_hash("m")


def test_events_are_numbered_and_handed_over_once():
    log = EventLog()
    log.append("stored", (b"a", b"b"))
    log.append("removed", (b"b",))
    assert log.take() == [BlockEvent(0, "stored", (b"a", b"b")), BlockEvent(1, "removed", (b"b",))]
    assert log.take() == []
    log.append("cleared")
    assert [event.sequence for event in log.take()] == [2]


def test_a_listener_is_woken_once_until_it_takes():
    log, woken = EventLog(), []
    log.on_first = lambda: woken.append(log.next_sequence)
    for _ in range(3):
        log.append("cleared")
    assert woken == [1]
    log.take()
    log.append("cleared")
    assert woken == [1, 4]


def test_events_are_bounded_and_a_loss_shows_as_a_gap():
    pool = BlockPool(2, 1)
    pool.events = type(pool.events)(capacity=3)
    for token in range(10):
        table = BlockTable(pool)
        table.grow(0, 1)
        table.publish(hash_chain(ROOT, [token], 1), 1)
        table.free()
    events = pool.events.take()
    assert len(events) == 3
    assert events[0].sequence == pool.events.next_sequence - 3 > 0
