from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from octavo_serve.shard.warm import idle_workers, is_raylet


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


def test_only_a_node_of_ray_is_counted(workers: list[subprocess.Popen[bytes]]) -> None:
    """Where nobody can be counted, processes would be asked for without end."""
    assert not is_raylet(os.getpid())
    assert not is_raylet(2**22 + 1)  # no such process
    script = "exec -a /somewhere/raylet/raylet bash -c 'sleep 60 & wait'"
    node = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    try:
        end = time.monotonic() + 30
        while not is_raylet(node.pid):
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        os.killpg(node.pid, 9)
        node.wait()
