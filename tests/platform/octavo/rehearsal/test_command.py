"""`octavo replay`, as it is typed."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from octavo.rehearsal.command import replay


@pytest.fixture
def octavo():
    app = typer.Typer()
    app.command()(replay)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_a_folder_is_replayed(octavo, recording):
    done = octavo(recording.parent, "--json")
    assert done.exit_code == 0
    (found,) = json.loads(done.output)
    assert found["difference"] is None
    assert found["frames"]["Added"] == 60
    assert found["digest"] in octavo(recording, "--json").output


def test_a_difference_is_shown_and_fails(octavo, recording):
    content = recording.read_bytes()
    recording.write_bytes(content.replace(b"fits", b"FITS", 1))
    done = octavo(recording)
    assert done.exit_code == 1
    assert "FITS" in done.output


def test_what_cannot_be_read_is_one_sentence(octavo, tmp_path):
    assert octavo(tmp_path).exit_code == 2
    assert "no recording in" in octavo(tmp_path).output
