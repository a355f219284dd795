from __future__ import annotations

import os
import sys
import threading

import pytest

from octavo.errors import Overloaded
from octavo.text.grammars import lanes
from octavo.text.grammars.lanes import Lane


def test_few_threads_and_a_short_queue():
    begun, let_go, done = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    running: list[int] = []

    def slowly(one: int) -> None:
        running.append(one)
        begun.release()
        assert let_go.wait(60)
        done.release()

    lane = Lane(slowly, threads=2, waiting=3, what="grammars")
    for i in range(2):
        lane.put(i)
        assert begun.acquire(timeout=60)
    for i in range(3):
        lane.put(2 + i)
    with pytest.raises(Overloaded, match="3 grammars wait; at most 3 may"):
        lane.put(5)
    assert running == [0, 1]
    let_go.set()
    assert all(done.acquire(timeout=60) for _ in range(5))
    assert sorted(running) == [0, 1, 2, 3, 4]


def test_idle_threads_end_and_come_again(monkeypatch):
    monkeypatch.setattr(lanes, "IDLE", 0.001)
    done = threading.Semaphore(0)
    lane = Lane(lambda _: done.release(), threads=2, waiting=3, what="grammars")
    for i in range(3):
        lane.put(i)
        assert done.acquire(timeout=60)
        for thread in list(lane.threads):
            thread.join(60)
        assert not lane.threads


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is a process's")
def test_threads_stand_back():
    done, found = threading.Event(), []

    def look(_: int) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        done.set()

    own = os.getpriority(os.PRIO_PROCESS, 0)
    Lane(look, threads=1, waiting=1, what="grammars", nice=3).put(0)
    assert done.wait(60)
    assert found == [min(19, own + 3)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
