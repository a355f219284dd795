"""A long list goes out in chunks that are the same JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from octavo_serve.api.listing import CHUNK, Listing


def chunks(listing: Listing) -> list[bytes]:
    async def collect() -> list[bytes]:
        return [chunk async for chunk in listing.chunks()]

    return asyncio.run(collect())


@pytest.mark.parametrize("at", [(), ("data",), ("data", "float")])
@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("around", [{}, {"before": {"id": "a"}, "after": {"usage": {"n": 1}}}])
def test_chunks_are_the_whole(at: tuple[str, ...], count: int, around: dict[str, Any]) -> None:
    listing = Listing(count=count, entry=lambda i: [i, "ä"], weight=CHUNK // 3, at=at, **around)
    assert json.loads(b"".join(chunks(listing))) == listing.whole()
    assert len(chunks(listing)) == 2 + -(-count // 3)


def test_what_is_large() -> None:
    assert not Listing(count=CHUNK, entry=str).is_large
    assert Listing(count=2, entry=str, weight=CHUNK).is_large


def test_entries_are_made_as_they_are_written() -> None:
    made = []

    async def read() -> None:
        stream = Listing(count=100, entry=lambda i: made.append(i), weight=CHUNK).chunks()
        await anext(stream)
        await anext(stream)
        assert made == [0]
        await stream.aclose()

    asyncio.run(read())
