from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from octavo.errors import Overloaded
from octavo_serve.api.threads import FairThreads, Threads

PATIENCE = 60.0  # a test that fails leaves its threads waiting, and Python waits for those


def test_results_and_errors_come_back() -> None:
    async def run() -> None:
        threads = Threads()
        assert await threads.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0)
        assert await threads.run(threading.current_thread) is not threading.current_thread()

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is a process's")
def test_they_stand_back_behind_the_event_loop() -> None:
    async def run() -> None:
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert await Threads(nice=3).run(os.getpriority, os.PRIO_PROCESS, 0) == mine + 3
        assert await Threads().run(os.getpriority, os.PRIO_PROCESS, 0) == mine
        assert os.getpriority(os.PRIO_PROCESS, 0) == mine

    asyncio.run(run())


def test_more_than_may_wait_are_refused_and_places_come_back() -> None:
    async def run() -> None:
        threads, gate = Threads(threads=1, waiting=2), threading.Event()
        first = asyncio.create_task(threads.run(gate.wait, PATIENCE))
        second = asyncio.create_task(threads.run(gate.wait, PATIENCE))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 large requests wait"):
            await threads.run(gate.wait, PATIENCE)
        last = asyncio.create_task(threads.finish(gate.wait, PATIENCE))  # the end of a request is never refused
        second.cancel()  # a client that leaves takes back what has not begun
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(threads.run(gate.wait, PATIENCE))
        await asyncio.sleep(0)
        gate.set()
        assert [await first, await third, await last] == [True, True, True]

    asyncio.run(run())


def test_askers_take_turns_in_fair_threads() -> None:
    async def run() -> None:
        threads, gate, begun = FairThreads(1, 2, "requests"), threading.Event(), asyncio.Event()
        loop, order = asyncio.get_running_loop(), list[str]()

        def begin() -> bool:
            loop.call_soon_threadsafe(begun.set)
            return gate.wait(PATIENCE)

        running = asyncio.create_task(threads.run("busy", begin))
        await begun.wait()
        first, cancelled = (asyncio.create_task(threads.run("busy", order.append, f"busy {i}")) for i in range(2))
        await asyncio.sleep(0)
        other = asyncio.create_task(threads.run("other", order.append, "other"))
        with pytest.raises(Overloaded, match="2 requests wait"):
            await cancelled  # it made place
        first.cancel()
        gate.set()
        assert await running
        await other
        with pytest.raises(ZeroDivisionError):
            await threads.run("busy", divmod, 7, 0)
        assert order == ["other"]

    asyncio.run(run())
