import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.kvcache import slot_tier
from octavo.kvcache.slot_file import SlotFile
from octavo.kvcache.slot_tier import SlotTier

SIZE, SLOTS = 64, 8


def name(number):
    return (number + 1).to_bytes(16, "big")


def rows(numbers):
    return np.array([np.full(SIZE, number) for number in numbers], np.uint8).reshape(-1, SIZE)


def open_tier(path, slots=SLOTS):
    return SlotTier(SlotFile(path, "form", SIZE, slots))


def write(tier, numbers):
    return tier.write([name(number) for number in numbers], rows(numbers))


def read(tier, numbers):
    """What was read, as numbers."""
    into = np.full((len(numbers), SIZE), 255, np.uint8)
    count = tier.read([name(number) for number in numbers], into)
    assert (into[:count] == into[:count, :1]).all()
    return into[:count, 0].tolist()


@pytest.fixture
def tier(tmp_path):
    tier = open_tier(tmp_path / "a.kv")
    yield tier
    tier.close()


def test_it_finds_the_beginning_of_a_chain(tier):
    assert write(tier, [3, 2, 1]) == 3
    assert tier.lookup([name(n) for n in (1, 2, 3, 4)]) == 3
    assert tier.lookup([name(n) for n in (4, 1)]) == 0
    assert read(tier, [1, 2, 3, 4]) == [1, 2, 3]


def test_what_is_there_is_not_written_again(tier):
    write(tier, [1])
    assert write(tier, [1, 2]) == 1


def test_the_tail_of_the_oldest_goes_first(tier):
    write(tier, [3, 2, 1])
    write(tier, [7, 6, 5, 4])
    write(tier, [9, 8])
    assert len(tier) == SLOTS
    assert read(tier, [1, 2, 3]) == [1, 2]
    write(tier, [11, 10])
    assert read(tier, [1, 2]) == [1, 2]  # asked for since
    assert read(tier, [4, 5, 6, 7]) == [4, 5]


def test_a_damaged_block_is_counted_and_not_there_any_more(tier, tmp_path):
    write(tier, [2, 1])
    with (tmp_path / "a.kv").open("r+b") as raw:
        raw.seek(8192 + 5)
        raw.write(b"!")
    assert read(tier, [1, 2]) == [1]
    assert tier.failures == {"checksum": 1}
    assert tier.lookup([name(2)]) == 0
    assert write(tier, [2]) == 1
    assert read(tier, [1, 2]) == [1, 2]


def test_a_full_disk_is_counted(tier, monkeypatch):
    """A block whose place could not be written is not the one that was there before, either."""
    write(tier, range(SLOTS))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:1], place) if len(data) == SIZE else 32)
    assert write(tier, [20, 21]) == 0
    monkeypatch.undo()
    assert tier.failures == {"full": 2}
    assert len(tier) == SLOTS - 1
    assert write(tier, [20]) == 1
    assert read(tier, [20]) == [20]


class CrampedFile(SlotFile):
    """On a disk with room for three blocks, where what has been written once can be written again."""

    room = 3
    written: set[int]

    def write(self, slot, block_hash, data):
        if slot not in self.written and len(self.written) >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.add(slot)
        super().write(slot, block_hash, data)


def test_a_full_disk_goes_on_with_the_newest_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(slot_tier, "CRAMPED", 4)
    file = CrampedFile(tmp_path / "a.kv", "form", SIZE, SLOTS)
    file.written = set()
    tier = SlotTier(file)
    written = [write(tier, [number]) for number in range(10)]
    assert written == [1, 1, 1, 0, 1, 1, 1, 1, 0, 1], "one more is tried now and then"
    assert len(tier) == 3
    assert read(tier, [9]) == [9]
    assert tier.failures == {"full": 2}
    file.room = SLOTS
    assert sum(write(tier, [number]) for number in range(20, 40)) == 20
    assert len(tier) == SLOTS
    tier.close()


def test_a_disk_that_fails_is_counted(tier, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    write(tier, [1])
    monkeypatch.setattr(os, "preadv", fails)
    assert read(tier, [1]) == []
    assert tier.failures == {"io": 1}


actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.integers(0, 30), max_size=4, unique=True)),
        st.tuples(st.just("read"), st.lists(st.integers(0, 30), max_size=4, unique=True)),
        st.tuples(st.just("damage"), st.integers(0, SLOTS * SIZE - 1)),
        st.tuples(st.just("reopen"), st.none()),
    ),
    max_size=30,
)


@given(actions)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_gives_back_what_it_was_given(tmp_path, actions):
    path = tmp_path / "b.kv"
    path.unlink(missing_ok=True)
    tier, damages = open_tier(path), 0
    for action, what in actions:
        if action == "write":
            write(tier, what)
            assert tier.lookup([name(number) for number in what[-1:]]) == len(what[-1:])
        elif action == "read":
            found = tier.lookup([name(number) for number in what])
            got = read(tier, what)
            assert got == what[: len(got)]
            assert len(got) == found or damages
        elif action == "damage":
            damages += 1
            with path.open("r+b") as raw:
                raw.seek(8192 + what)
                raw.write(b"\xaa")
        else:
            known = set(tier._index)
            tier.close()
            tier = open_tier(path)
            assert set(tier._index) == known
        assert len(tier._order) == len(tier) == SLOTS - len(tier._free)
    tier.close()
