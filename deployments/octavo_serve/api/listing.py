"""`Listing`: an answer that is a long list, whose entries are made when they are written.

10,000 vectors of 384 numbers are 15 MB as the engine made them, and 80 MB as JSON: so the answer goes out in chunks, as
fast as its client reads, and other tasks run between two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_serve.api.surface import to_json

CHUNK = 2**13
"""Numbers that are written in one go: 1 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """An answer with a list.

    Attributes:
        count: of the list's entries.
        entry: makes one.
        weight: what an entry takes to make and write, in numbers.
        at: names of the field that holds the list, and of those inside it; (): the answer is the list.
        before, after: the other fields.
    """

    count: int
    entry: Callable[[int], Any]
    weight: int = 1
    at: tuple[str, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_large(self) -> bool:
        """Whether it takes too long to be made in one go on an event loop."""
        return self.count * self.weight > CHUNK

    def whole(self) -> Any:
        """All of it."""
        found: Any = [self.entry(number) for number in range(self.count)]
        for name in reversed(self.at[1:]):
            found = {name: found}
        return {**self.before, self.at[0]: found, **self.after} if self.at else found

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The same as JSON."""
        step = max(1, CHUNK // self.weight)
        yield self._open()
        for start in range(0, self.count, step):
            entries = [self.entry(number) for number in range(start, min(start + step, self.count))]
            yield (b"," if start else b"") + to_json(entries)[1:-1]
            await asyncio.sleep(0)
        yield self._close()

    def _open(self) -> bytes:
        if not self.at:
            return b"["
        inside = b":{".join(map(to_json, self.at))
        return to_json(self.before)[:-1] + (b"," if self.before else b"") + inside + b":["

    def _close(self) -> bytes:
        if not self.at:
            return b"]"
        return b"]" + b"}" * (len(self.at) - 1) + (b"," if self.after else b"") + to_json(self.after)[1:]
