"""A gateway whose loop is late refuses, and one held up once does not."""

from __future__ import annotations

import asyncio
import time

import pytest

from octavo.errors import Overloaded
from octavo_serve.api.lateness import LATE, Lateness


def test_the_average_follows_the_loop() -> None:
    async def held_up(times: int) -> Lateness:
        lateness = Lateness()
        watching = asyncio.create_task(lateness.watch())
        for _ in range(times):
            for _ in range(3):  # so that the next look is waited for
                await asyncio.sleep(0)
            time.sleep(0.2)
        for _ in range(3):
            await asyncio.sleep(0)
        watching.cancel()
        return lateness

    assert asyncio.run(held_up(3)).seconds > 0.03


def test_a_late_loop_takes_nothing_new() -> None:
    lateness = Lateness()
    lateness.check()
    lateness.seconds = 1.1 * LATE
    with pytest.raises(Overloaded):
        lateness.check()
    assert lateness.refused == 1


def test_a_process_that_was_stopped_has_no_more_to_do_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stopped() -> Lateness:
        lateness, loop = Lateness(), asyncio.get_running_loop()
        watching = asyncio.create_task(lateness.watch())
        await asyncio.sleep(0)
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 15.0)
        while not lateness.seconds:
            await asyncio.sleep(0)
        watching.cancel()
        return lateness

    asyncio.run(stopped()).check()


def test_what_nobody_waits_for_stands_back_before_anybody_feels_it() -> None:
    lateness = Lateness()
    for seconds, spare in ((0.0, 100), (0.001, 100), (0.003, 50), (0.005, 1), (1.0, 1)):
        lateness.seconds = seconds
        assert lateness.spare(100) == spare
        assert lateness.spare(0) == 0
