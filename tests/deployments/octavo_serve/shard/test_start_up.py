from __future__ import annotations

import subprocess
import sys
import time

import pytest

from octavo_serve import IMPORTED_AT
from octavo_serve.shard.start_up import StartUp, process_start


def test_the_phases_add_up_to_the_time_since_the_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "octavo_serve.shard.start_up.IMPORTED_AT", time.monotonic() - 0.1
    )  # these tests may be minutes old
    start = StartUp()
    time.sleep(0.02)
    start.done("model")
    start.done("network")
    assert list(start.phases) == ["process", "imports", "model", "network"]
    assert start.phases["model"] >= 0.02
    assert sum(start.phases.values()) == pytest.approx(time.monotonic() - process_start(), abs=0.1)
    assert str(start).startswith(f"{sum(start.phases.values()):.2f} s after its process began (process ")
    told = start.as_metadata()
    assert told == {"phases": {phase: round(seconds, 2) for phase, seconds in start.phases.items()}, "warm": False}


def test_nobody_waited_for_a_process_that_was_kept_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_serve.shard.start_up.IMPORTED_AT", time.monotonic() - 60.0)
    start = StartUp()
    start.done("model")
    assert list(start.phases) == ["model"]
    assert "s in a process that was ready (model 0.0" in str(start)


def test_it_is_said_in_the_log_and_as_a_metric(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found: dict[tuple[str, str], float] = {}

    class Gauge:
        def __init__(self, name: str, **more: object) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            found[self.name, tags["phase"]] = value

    monkeypatch.setattr("octavo_serve.shard.start_up.metrics.Gauge", Gauge)
    start = StartUp()
    start.done("model")
    start.publish("abc", "an engine")
    assert found == {("octavo_shard_start_seconds", phase): seconds for phase, seconds in start.phases.items()}
    assert capfd.readouterr().err == f"Engine ready: abc: an engine\nShard ready: abc: {start}\n"


def test_a_process_knows_when_it_began() -> None:
    code = "import time; time.sleep(0.5); from octavo_serve.shard.start_up import *; "
    code += "print(time.monotonic() - process_start())"
    before = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.45 < age < time.monotonic() - before + 0.1
    assert time.monotonic() > IMPORTED_AT
