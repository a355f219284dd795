"""Memory of the host in front of a file."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.kvcache.layered_tier import LayeredTier
from octavo.kvcache.slot_file import SlotFile
from octavo.kvcache.slot_memory import SlotMemory
from octavo.kvcache.slot_tier import SlotTier

SIZE, FEW, MANY = 64, 4, 16


def name(number):
    return (number + 1).to_bytes(16, "big")


def names(numbers):
    return [name(number) for number in numbers]


def write(tier, numbers):
    """A chain's last ones first."""
    data = np.array([np.full(SIZE, number) for number in reversed(numbers)], np.uint8).reshape(-1, SIZE)
    return tier.write(names(reversed(numbers)), data)


def read(tier, numbers):
    into = np.full((len(numbers), SIZE), 255, np.uint8)
    count = tier.read(names(numbers), into)
    assert (into[:count] == into[:count, :1]).all()
    return into[:count, 0].tolist()


def open_both(path):
    first, second = SlotTier(SlotMemory(SIZE, FEW)), SlotTier(SlotFile(path, "form", SIZE, MANY))
    return first, second, LayeredTier(first, second)


@pytest.fixture
def layers(tmp_path):
    *layers, both = open_both(tmp_path / "a.kv")
    yield *layers, both
    both.close()


def test_what_memory_has_no_room_for_comes_from_the_file_and_is_in_memory_then(layers):
    first, second, both = layers
    assert write(both, [1, 2, 3, 4, 5, 6]) == 6
    assert (len(first), len(second)) == (FEW, 6)
    assert both.lookup(names([1, 2, 3, 4, 5, 6, 7])) == 6
    assert sorted(both.hashes()) == names([1, 2, 3, 4, 5, 6])
    assert read(both, [1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4, 5, 6]
    write(both, [8, 9])
    assert first.lookup(names([8, 9])) == 2
    assert read(both, [1, 2, 3]) == [1, 2, 3]


def test_a_block_is_gone_when_both_have_given_it_up(layers):
    _, second, both = layers
    write(both, [1, 2])
    write(both, [3, 4])
    write(both, [5, 6])
    assert [came for came, _ in both.changes].count(False) == 0
    both.changes.clear()
    for number in range(10, 10 + 2 * MANY):
        write(both, [number])
    there = set(both.hashes())
    told = set(names(range(1, 7)))
    for came, block_hash in both.changes:
        (told.add if came else told.discard)(block_hash)
    assert told == there
    assert len(there) >= len(second)


def test_what_the_file_lost_memory_has_yet(layers, tmp_path):
    first, _, both = layers
    write(both, [1, 2])
    with (tmp_path / "a.kv").open("r+b") as raw:
        raw.seek(8192)
        raw.write(b"\xaa" * 2 * SIZE)
    assert read(both, [1, 2]) == [1, 2]
    write(both, [3, 4, 5, 6])
    write(both, [7, 8, 9])
    assert first.lookup([name(2)]) == 0
    assert 2 not in read(both, [1, 2])
    assert both.failures["checksum"] > 0


@given(st.lists(st.tuples(st.sampled_from("wr"), st.lists(st.integers(0, 40), max_size=6, unique=True)), max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_gives_back_what_it_was_given_and_tells_what_it_has(tmp_path, actions):
    path = tmp_path / "b.kv"
    path.unlink(missing_ok=True)
    *_, both = open_both(path)
    told = set()
    for action, what in actions:
        if action == "w":
            write(both, what)
        else:
            found = both.lookup(names(what))
            assert read(both, what) == what[:found]
        while both.changes:
            came, block_hash = both.changes.popleft()
            (told.add if came else told.discard)(block_hash)
        assert told == set(both.hashes())
    both.close()
