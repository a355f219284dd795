import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from octavo.kvcache.slot_file import Damaged, SlotFile, slots_within

SIZE = 5000


def block(seed):
    return np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)


def name(seed):
    return seed.to_bytes(16, "big")


def read(file, slot, seed):
    into = np.zeros(SIZE, np.uint8)
    file.read(slot, name(seed), into)
    return into


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.kv"


@pytest.fixture
def file(path):
    file = SlotFile(path, "form", SIZE, 3)
    yield file
    file.close()


def test_what_is_written_is_read_by_who_opens_it_next(file, path):
    file.write(2, name(1), block(1))
    file.close()
    again = SlotFile(path, "form", SIZE, 3)
    assert list(again.entries()) == [(2, name(1))]
    assert (read(again, 2, 1) == block(1)).all()
    file._fd = again._fd


def test_only_its_user_can_read_it_and_it_keeps_to_its_bytes(file, path):
    for slot in range(3):
        file.write(slot, name(slot + 1), block(slot))
    status, bound = path.stat(), 8192 + 3 * (SIZE + 32)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size <= bound
    assert (slots_within(bound, SIZE), slots_within(bound - 1, SIZE)) == (3, 2)


def test_two_do_not_have_it_at_once(file, path):
    with pytest.raises(BlockingIOError):
        SlotFile(path, "form", SIZE, 3)


@pytest.mark.parametrize(("form", "slots"), [("other", 3), ("form", 4)])
def test_a_file_of_another_form_is_emptied(path, form, slots):
    first = SlotFile(path, "form", SIZE, 3)
    first.write(0, name(1), block(1))
    first.close()
    other = SlotFile(path, form, SIZE, slots)
    assert list(other.entries()) == []
    other.close()


@pytest.mark.parametrize("place", [0, SIZE - 1, -1, -20])
def test_a_flipped_bit_is_seen(file, path, place):
    """In the first byte of a block, the last, and in the entry: its checksum and its hash."""
    file.write(0, name(7), block(7))
    place = 4096 + 32 + place if place < 0 else 8192 + place
    with path.open("r+b") as raw:
        raw.seek(place)
        byte = raw.read(1)[0]
        raw.seek(place)
        raw.write(bytes([byte ^ 4]))
    with pytest.raises(Damaged):
        read(file, 0, 7)


def test_a_block_is_not_taken_for_another(file):
    file.write(0, name(7), block(7))
    with pytest.raises(Damaged):
        read(file, 0, 8)


def test_a_truncated_file_has_holes_and_then_they_are_seen(file, path):
    for slot in range(3):
        file.write(slot, name(slot), block(slot))
    os.truncate(path, 8192 + SIZE + 10)
    assert (read(file, 0, 0) == block(0)).all()
    with pytest.raises(Damaged):
        read(file, 1, 1)
    file.close()
    again = SlotFile(path, "form", SIZE, 3)
    with pytest.raises(Damaged):
        read(again, 2, 2)
    file._fd = again._fd


KILLED = """
import sys, numpy as np
from octavo.kvcache.slot_file import SlotFile
file = SlotFile(sys.argv[1], "form", 1 << 20, 4)
for turn in range(10**9):
    if turn == 1:
        print("begun", flush=True)
    for slot in range(4):
        file.write(slot, turn.to_bytes(16, "big"), np.full(1 << 20, turn % 251, np.uint8))
"""


def test_who_is_killed_in_a_write_leaves_nothing_wrong(path):
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"begun\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        file, into = SlotFile(path, "form", 1 << 20, 4), np.zeros(1 << 20, np.uint8)
        for slot, block_hash in file.entries():
            file.read(slot, block_hash, into)
            assert (into == int.from_bytes(block_hash, "big") % 251).all()
        file.close()
