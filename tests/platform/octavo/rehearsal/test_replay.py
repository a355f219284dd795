"""A recording is decided again; where it is not, both sides are shown (what is recorded: engine/test_recorded.py)."""

from __future__ import annotations

import random

import pytest

from octavo.errors import ConfigError
from octavo.rehearsal.replay import replay_file
from octavo.rehearsal.traffic import read_traffic


def test_what_was_recorded_is_decided_again(recording):
    found = replay_file(recording)
    assert found.difference is None
    assert (found.frames["Added"], found.digest) == (60, replay_file(recording).digest)


def test_the_first_difference_has_both_sides(recording):
    content = recording.read_bytes()
    place = content.rindex(b"length")
    recording.write_bytes(content[:place] + b"LENGTH" + content[place + 6 :])
    found = replay_file(recording).difference
    assert found is not None
    assert found.frame == "Committed"
    assert found.recorded["decisions"][0]["reason"] == "LENGTH"
    assert found.replayed["decisions"][0]["reason"] == "length"


def test_a_damaged_recording_is_said_to_be_one(recording):
    content = recording.read_bytes()
    recording.write_bytes(content.replace(b"\xa4plan", b"\xa4PLAN", 1))
    with pytest.raises(ConfigError, match="is damaged, or of another version"):
        replay_file(recording)


def test_whatever_was_damaged_is_one_sentence(recording):
    """Bytes that are others, too many or missing: it is refused, or decided as it says."""
    content, drawn, refused = recording.read_bytes(), random.Random(1), 0
    for _ in range(60):
        damaged = bytearray(content[: drawn.choice([4_000, 40_000])])
        for _ in range(drawn.choice([1, 3, 20])):
            at = drawn.randrange(len(damaged))
            damaged[at : at + drawn.randrange(3)] = drawn.randbytes(drawn.randrange(3))
        recording.write_bytes(damaged)
        for read in (replay_file, read_traffic):
            try:
                read(recording)
            except ConfigError:
                refused += 1
    assert refused > 30
