"""What waits in a gateway for clients that do not read.

A client that does not read slows only itself: its request runs to its end, frees its place at the shard, and what it
said waits here. So much may wait for all clients together; beyond that the request for which the most waits is ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from octavo.request import SequenceUpdate

MAX_WAITING = 256 * 2**20
"""Bytes, for all clients of a gateway."""

FEW = 32
"""Updates of one request that wait uncounted: most are taken before the next one comes."""

_UPDATE, _TOKEN, _LOGPROB = 400, 250, 190  # bytes in memory, measured; those of a token if it has log probabilities


class UnreadRequest(Protocol):
    """A request whose updates wait."""

    def give_up(self) -> None:
        """Let go of what waits, and end the request."""
        ...


class Unread:
    """Counts what waits.

    Args:
        limit: bytes, after which the request for which the most waits is ended.
    """

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self.bytes = 0
        self._limit = limit
        self._waiting: dict[UnreadRequest, int] = {}

    def add(self, request: UnreadRequest, updates: Iterable[SequenceUpdate]) -> None:
        """More waits for the reader of a request."""
        size = sum(map(_size, updates))
        self._waiting[request] = self._waiting.get(request, 0) + size
        self.bytes += size
        while self.bytes > self._limit:
            largest = max(self._waiting, key=self._waiting.__getitem__)
            self.taken(largest)
            largest.give_up()

    def taken(self, request: UnreadRequest) -> None:
        """Nothing of a request waits any more."""
        self.bytes -= self._waiting.pop(request, 0)


def _size(update: SequenceUpdate) -> int:
    size = _UPDATE
    if update.logprobs is not None:
        size += sum(_TOKEN + _LOGPROB * len(entries) for entries in update.logprobs)
    if update.prompt_logprobs is not None:
        size += 8 * update.prompt_logprobs.num_values
    return size
