from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from octavo_serve.warm import idle_workers


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children of this process that look like Ray's: two idle ones, one that has an actor."""
    found = [
        subprocess.Popen(["bash", "-c", f"exec -a {name} sleep 60"])
        for name in ("ray::IDLE", "ray::IDLE", "ray::ServeReplica:octavo:shard")
    ]
    yield found
    for process in found:
        process.kill()
        process.wait()


def test_idle_workers_are_counted(workers: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + 30
    while idle_workers(os.getpid()) != 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert idle_workers(os.getpid()) == 2
    workers[0].kill()
    workers[0].wait()
    assert idle_workers(os.getpid()) == 1
