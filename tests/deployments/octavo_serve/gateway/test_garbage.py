"""When the gateway collects cyclic garbage."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from octavo_serve.gateway import garbage
from octavo_serve.gateway.garbage import FEW, LONGEST_SECONDS, SHORTEST_SECONDS, is_due


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_it_is_due_from_time_to_time_where_few_requests_run_and_seldom_where_many_do() -> None:
    assert not is_due(0, SHORTEST_SECONDS - 1)
    assert is_due(FEW, SHORTEST_SECONDS)
    assert not is_due(FEW + 1, LONGEST_SECONDS - 1)
    assert is_due(10**6, LONGEST_SECONDS)


def test_old_garbage_goes_when_it_is_due_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        due = [False]
        looked = asyncio.Event()

        def says(running: int, since: float) -> bool:
            looked.set()
            return due[0]

        monkeypatch.setattr(garbage, "is_due", says)
        old = Cycle()
        gc.collect()  # it is in the oldest generation now
        gone = weakref.ref(old)
        collecting = asyncio.create_task(garbage.collect(lambda: 0, 0.0))
        await looked.wait()
        del old
        young = [[number] for number in range(100_000)]  # Python would have collected all of it by now
        assert len(young) == 100_000
        assert gone() is not None
        due[0] = True
        async with asyncio.timeout(60):
            while gone() is not None:
                await asyncio.sleep(0)
        collecting.cancel()
        await asyncio.wait([collecting])

    asyncio.run(run())
