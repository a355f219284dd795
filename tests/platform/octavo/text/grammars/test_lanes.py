from __future__ import annotations

import os
import sys
import threading

import pytest

from octavo.errors import Overloaded
from octavo.text.grammars import lanes
from octavo.text.grammars.lanes import Lane, Turns


def refuse(one: int, error: Overloaded) -> None:
    raise AssertionError(f"{one} lost its place: {error}")


def test_few_threads_and_a_short_queue():
    begun, let_go, done = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    running: list[int] = []

    def slowly(one: int) -> None:
        running.append(one)
        begun.release()
        assert let_go.wait(60)
        done.release()

    lane = Lane(slowly, refuse, threads=2, waiting=3, what="grammars")
    for i in range(2):
        lane.put(i)
        assert begun.acquire(timeout=60)
    for i in range(3):
        lane.put(2 + i)
    with pytest.raises(Overloaded, match="3 grammars wait; at most 3 may, and 3 of them are yours: send"):
        lane.put(5)
    assert running == [0, 1]
    let_go.set()
    assert all(done.acquire(timeout=60) for _ in range(5))
    assert sorted(running) == [0, 1, 2, 3, 4]


def test_whoever_had_least_is_next():
    turns: Turns[int] = Turns()
    for number in range(4):
        turns.add(number, "hostile")
    assert turns.next() == ("hostile", 0)
    turns.ended("hostile", 0.4)
    assert turns.next() == ("hostile", 1)
    for number in range(10, 13):
        turns.add(number, "newcomer")
    for number in range(10, 13):  # the other's, which runs, is taken to take 0.4 s again
        assert turns.next() == ("newcomer", number)
        turns.ended("newcomer", 0.001)
    turns.ended("hostile", 0.4)
    turns.add(13, "newcomer")
    assert [turns.next() for _ in range(2)] == [("newcomer", 13), ("hostile", 2)]


def test_nobody_saves_up_turns_or_is_robbed_of_them():
    turns: Turns[int] = Turns()
    for number in range(20):
        turns.add(number, "busy")
    for _ in range(10):
        turns.next()
        turns.ended("busy", 1.0)
    for number in range(20):
        turns.add(number, "late")
    served = []
    for _ in range(12):
        asker, _ = turns.next()
        turns.ended(asker, 1.0)
        served.append(asker)
    assert served.count("late") == 6
    assert {*served[:2]} == {"late", "busy"}


def test_only_so_many_askers_are_remembered_and_none_when_nothing_waits(monkeypatch):
    monkeypatch.setattr(lanes, "REMEMBERED", 3)
    turns: Turns[int] = Turns()
    turns.add(0, "first")
    turns.next()
    for number in range(10):
        turns.add(number, f"asker {number}")
        turns.next()
        turns.ended(f"asker {number}", 0.1)
    assert len(turns._askers) == 3
    turns.ended("first", 0.1)
    assert not turns._askers


def test_whoever_has_most_in_the_queue_makes_place():
    let_go, begun, done, refused = threading.Event(), threading.Event(), threading.Semaphore(0), []
    order = []

    def work(one: str) -> None:
        begun.set()
        assert let_go.wait(60)
        order.append(one)
        done.release()

    lane = Lane(work, lambda one, error: refused.append((one, str(error))), threads=1, waiting=3, what="grammars")
    lane.put("h0", "hostile")
    assert begun.wait(60)
    for i in range(1, 4):
        lane.put(f"h{i}", "hostile")
    lane.put("a", "a")
    assert [one for one, _ in refused] == ["h3"]
    assert "3 of them are yours" in refused[0][1]
    with pytest.raises(Overloaded, match="2 of them are yours"):
        lane.put("h4", "hostile")
    with pytest.raises(Overloaded, match="1 of them are yours"):
        lane.put("a2", "a")  # then it would have as many as the other
    lane.put("b", "b")
    assert [one for one, _ in refused] == ["h3", "h2"]
    with pytest.raises(Overloaded, match="0 of them are yours"):
        lane.put("c", "c")
    let_go.set()
    assert all(done.acquire(timeout=60) for _ in range(4))
    assert (order[0], {*order[1:]}) == ("h0", {"h1", "a", "b"})


def test_idle_threads_end_and_come_again(monkeypatch):
    monkeypatch.setattr(lanes, "IDLE", 0.001)
    done = threading.Semaphore(0)
    lane = Lane(lambda _: done.release(), refuse, threads=2, waiting=3, what="grammars")
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
    Lane(look, refuse, threads=1, waiting=1, what="grammars", nice=3).put(0)
    assert done.wait(60)
    assert found == [min(19, own + 3)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_memory_is_given_back_after_much_work_and_at_the_end(monkeypatch):
    returned = threading.Semaphore(0)
    monkeypatch.setattr(lanes, "return_memory", returned.release)
    monkeypatch.setattr(lanes, "IDLE", 0.05)
    monkeypatch.setattr(lanes, "RETURN_EVERY", 0.0)
    lane = Lane[int](lambda one: sum(range(1000)), refuse, threads=1, waiting=2, what="grammars")
    lane.put(0)
    assert returned.acquire(timeout=60)
    assert returned.acquire(timeout=60)  # nothing came for long
    lanes.RETURN_EVERY = 1e9
    lane.put(1)
    assert returned.acquire(timeout=60)
    assert not returned.acquire(blocking=False)


def test_the_system_takes_memory_back():
    lanes.return_memory()
