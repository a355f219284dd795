"""Files checked against their sum: once, and again when one changed."""

from __future__ import annotations

import hashlib
import os

import pytest

from octavo import verified
from octavo.errors import ModelError
from octavo.source import resolve_source
from octavo.verified import verify


def test_a_file_is_what_it_is_said_to_be_or_named(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    verify(file, hashlib.sha256(b"GGUF").hexdigest().upper(), "mine")
    with pytest.raises(ModelError, match="the weights of 'mine' are not the expected ones"):
        verify(file, hashlib.sha256(b"other").hexdigest(), "mine")
    with pytest.raises(ModelError):
        verify(tmp_path / "gone.gguf", "0" * 64, "mine")


def test_a_change_of_the_same_length_and_time_is_noticed(tmp_path):
    file, wanted = tmp_path / "m.gguf", hashlib.sha256(b"GGUF").hexdigest()
    file.write_bytes(b"GGUF")
    verify(file, wanted, "mine")
    times = file.stat()
    file.write_bytes(b"GGUg")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ModelError):
        verify(file, wanted, "mine")


def test_a_sum_is_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    file, counted, computed = tmp_path / "m.gguf", [], verified._computed
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(verified, "_computed", lambda file: counted.append(file) or computed(file))
    name = f"{file}#sha256={hashlib.sha256(b'GGUF').hexdigest()}"
    for _ in range(2):
        verified._sum.cache_clear()  # as in another process
        resolve_source(name)
    assert counted == [file]
