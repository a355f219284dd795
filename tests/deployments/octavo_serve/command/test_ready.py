"""Shards that start together are one line, however their own lines come."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from octavo_serve.command import ready
from octavo_serve.command.ready import ReadyShards


def shard(model: str, seconds: float) -> str:
    return f"(Shard pid=7) Shard ready: {model}: {seconds:.2f} s after its process began (process 1.00, model 1.00)"


class Heard:
    """What was said; `wait` for that many lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._said = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._said:
            self.lines.append(line)
            self._said.notify()

    def wait(self, lines: int) -> None:
        with self._said:
            assert self._said.wait_for(lambda: len(self.lines) >= lines, 60)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def shards(heard: Heard) -> Iterator[ReadyShards]:
    found = ReadyShards({"m": 16, "one": 1}, heard)
    yield found
    found.close()


def test_sixteen_shards_are_one_line_and_their_engine_another(shards: ReadyShards, heard: Heard) -> None:
    for second in range(16):
        shards.read("(Shard pid=7) Engine ready: m: llama on cpu (avx2); now 20 to 21 GB/s")
        shards.read(shard("m", 4.0 + second))
    assert heard.lines == [
        "Engine ready: m: llama on cpu (avx2); now 20 to 21 GB/s",
        "16 shards ready: m: in 4.0 to 19.0 s; the slowest 19.00 s after its process began (process 1.00, model 1.00)",
    ]


def test_one_shard_is_said_at_once(shards: ReadyShards, heard: Heard) -> None:
    shards.read("noise")
    shards.read(shard("one", 3.5))
    assert heard.lines == [shard("one", 3.5).partition(") ")[2]]


def test_those_that_the_load_brings_are_lines_by_time(
    shards: ReadyShards, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "TOGETHER_SECONDS", 0.01)
    shards.read(shard("one", 3.5))
    shards.read(shard("one", 0.4))
    heard.wait(2)
    assert heard.lines[1].startswith("Shard ready: one: 0.40 s")


def test_those_that_never_come_are_not_waited_for(
    shards: ReadyShards, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "PATIENCE_SECONDS", 0.01)
    shards.read(shard("m", 3.5))
    heard.wait(1)
    assert heard.lines[0].startswith("Shard ready: m: 3.50 s")
