"""Files of frames: bounded, and whole up to where they end."""

from __future__ import annotations

import logging

import msgspec
import pytest

from octavo.errors import ConfigError
from octavo.recording import Frame, Recorder, kind_of, read_frames


class Said(Frame, tag="said"):
    number: int


def written(folder, count: int, **options):
    recorder = Recorder(str(folder), "test", **options)
    for number in range(count):
        recorder.write(Said(number))
    recorder.close()
    return recorder.path


def numbers(path) -> list[int]:
    return [msgspec.msgpack.decode(frame, type=Said).number for frame in read_frames(path)]


def test_frames_come_back_in_order(tmp_path):
    path = written(tmp_path, 100)
    assert numbers(path) == list(range(100))
    assert kind_of(path) == "test"


def test_a_file_that_is_cut_off_has_what_is_whole(tmp_path):
    path = written(tmp_path, 10)
    path.write_bytes(path.read_bytes()[:-3])
    assert numbers(path) == list(range(9))


def test_a_file_ends_where_it_is_as_long_as_it_may_be(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = written(tmp_path, 1000, most=100)
    assert 0 < len(found := numbers(path)) < 20
    assert found == list(range(len(found)))
    assert "ends here: it is as long as it may be" in caplog.text


def test_a_recording_ends_where_the_disk_is_too_slow(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("octavo.recording.MOST_WAITING", 0)
    with caplog.at_level(logging.WARNING):
        path = written(tmp_path, 3)
    assert numbers(path) == []
    assert "ends here: 0 frames wait for the disk" in caplog.text


def test_what_cannot_be_written_or_read_is_said(tmp_path):
    (tmp_path / "file").write_text("something else")
    with pytest.raises(ConfigError, match="nothing can be written to"):
        Recorder(str(tmp_path / "file"), "test")
    with pytest.raises(ConfigError, match="is no recording of this version"):
        kind_of(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be read"):
        kind_of(tmp_path / "none")
