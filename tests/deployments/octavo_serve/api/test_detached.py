"""Runs without a client: a log for many readers, within bounds."""

from __future__ import annotations

import asyncio

import pytest

from octavo.errors import OctavoError, Overloaded
from octavo_serve.api import detached
from octavo_serve.api.detached import Detached, DetachedRun


async def read(run: DetachedRun, after: int = 0) -> bytes:
    return b"".join([chunk async for chunk in run.follow(after)])


def test_everybody_reads_all_of_it_from_anywhere() -> None:
    async def perform() -> None:
        runs, go = Detached(), asyncio.Event()

        async def work(run: DetachedRun) -> None:
            run.say(b"a")
            await go.wait()
            run.say(b"b")
            run.say(b"c")

        run = runs.start("r", "alice", "state", work, logs=True)
        early = asyncio.create_task(read(run))
        await asyncio.sleep(0)
        assert runs.find("alice", "r") is run
        assert runs.find("bob", "r") is None
        go.set()
        assert await early == b"abc"
        assert (await read(run), await read(run, 1), await read(run, 7)) == (b"abc", b"bc", b"")
        runs.drop("r")
        assert runs.find("alice", "r") is None
        with pytest.raises(OctavoError, match="not kept any longer"):
            await read(run)

    asyncio.run(perform())


def test_what_is_cancelled_has_ended() -> None:
    async def perform() -> None:
        runs, ended = Detached(), []

        async def work(run: DetachedRun) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(run)

        run = runs.start("r", "", None, work, logs=False)
        await asyncio.sleep(0)
        await runs.cancel(run)
        assert ended == [run]
        assert runs.find("", "r") is None
        await runs.cancel(run)

    asyncio.run(perform())


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "MAX_RUNNING", 2)
    monkeypatch.setattr(detached, "MAX_LOG_BYTES", 10)

    async def perform() -> None:
        runs = Detached()

        async def says(run: DetachedRun) -> None:
            for _ in range(8):
                run.say(b"x")

        async def says_more(run: DetachedRun) -> None:
            await says(run)
            await says(run)

        first = runs.start("a", "", None, says, logs=True)
        assert await read(first) == b"x" * 8
        second = runs.start("b", "", None, says, logs=True)
        assert await read(second) == b"x" * 8
        assert first.lost, "the first that ended made room"
        third = runs.start("c", "", None, says_more, logs=True)
        with pytest.raises(OctavoError):
            await read(third)
        for key in "de":
            runs.start(key, "", None, says, logs=False)
        with pytest.raises(Overloaded):
            runs.start("f", "", None, says, logs=False)

    asyncio.run(perform())
