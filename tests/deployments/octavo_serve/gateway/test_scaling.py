from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from octavo_serve.gateway.scaling import ScalingReader
from octavo_serve.wire.scaling import Scaling, encode_scaling

DECIDED = Scaling(1000.0, 2, 1, "load", 1.4)


class Kept:
    """Where decisions are kept, and what was made of them."""

    def __init__(self, value: bytes | None = None) -> None:
        self.value = encode_scaling(DECIDED) if value is None else value
        self.reads = 0
        self.found: list[dict[str, Scaling]] = []
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, key: str) -> bytes | None:
        self.reads += 1
        self.answers.wait(10)
        return self.value if key == "kept" else None


def run(kept: Kept, scenario: Callable[[ScalingReader], object], keys: dict[str, str]) -> None:
    async def main() -> None:
        await scenario(ScalingReader(lambda: keys, kept.found.append, kept))  # type: ignore[misc]

    asyncio.run(main())


def test_what_is_kept_is_found_once_a_second_however_many_ask() -> None:
    kept = Kept()

    async def scenario(reader: ScalingReader) -> None:
        await asyncio.gather(*(reader.refresh() for _ in range(5)))

    run(kept, scenario, {"m": "kept", "new": "nothing"})
    assert (kept.found, kept.reads) == ([{"m": DECIDED}], 2)


def test_nobody_waits_long_for_a_store_that_does_not_answer() -> None:
    kept = Kept()
    kept.answers.clear()

    async def scenario(reader: ScalingReader) -> None:
        await reader.refresh()
        assert kept.found == []
        kept.answers.set()
        while not kept.found:
            await reader.refresh()

    run(kept, scenario, {"m": "kept"})
    assert kept.found == [{"m": DECIDED}]


def test_where_nothing_scales_nothing_is_read() -> None:
    kept = Kept()
    run(kept, lambda reader: reader.refresh(), {})
    assert (kept.found, kept.reads) == ([{}], 0)


def test_nonsense_changes_nothing() -> None:
    kept = Kept(b"{}")
    run(kept, lambda reader: reader.refresh(), {"m": "kept"})
    assert kept.found == []
