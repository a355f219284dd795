"""What happens to requests that nobody waits for is told when they end, and at least once a second.

Each step's updates wake the shard's event loop, cross a socket and wake the gateway's. For a line of a batch, of which
only the whole answer is read, that is most of what it costs there. What is not told yet is computed again if the shard
dies.
"""

from __future__ import annotations

from octavo.request import BELOW_ALL, Request, SequenceUpdate

HELD_SECONDS, HELD_TOKENS = 1.0, 2**15
"""For which updates are kept at most, while there are steps; and their tokens, so that a message holds them."""


def is_gathered(request: Request) -> bool:
    """Whether nobody waits for a request's updates: its text ends nothing, and no verdict on it is due."""
    return request.priority >= BELOW_ALL and not request.params.stop_strings and not request.alone


class Gathered:
    """The updates of such requests until they are told; each request's lie side by side, in their order.

    Attributes:
        requests: whose updates are kept.
    """

    def __init__(self) -> None:
        self.requests: set[str] = set()
        self._kept: dict[str, list[SequenceUpdate]] = {}
        self._last: dict[tuple[str, int], SequenceUpdate] = {}  # of each sequence, of those that are kept
        self._since, self._tokens = 0.0, 0

    def add(self, update: SequenceUpdate, now: float) -> list[SequenceUpdate]:
        """Keep an update; returns all of its request's once one of its sequences has ended."""
        if not self._kept:
            self._since = now
        self._tokens += len(update.token_ids)
        key = name, _ = update.request_id, update.index
        last = self._last.get(key)
        if last is None or last.num_forced or update.num_forced:  # it is told which tokens were forced
            self._kept.setdefault(name, []).append(update)
            self._last[key] = update
        else:
            _extend(last, update)
        if update.finish_reason is None:
            return []
        told = self._kept.pop(name)
        for each in told:
            self._last.pop((name, each.index), None)
        return told

    def due(self, now: float) -> list[SequenceUpdate]:
        """What has been kept for long enough, or is enough: all, so that it is one message."""
        ripe = now - self._since >= HELD_SECONDS or self._tokens >= HELD_TOKENS
        return self.all() if self._kept and ripe else []

    def all(self) -> list[SequenceUpdate]:
        """What is kept; it is not any more."""
        kept, self._kept, self._last, self._tokens = self._kept, {}, {}, 0
        return [update for updates in kept.values() for update in updates]


def _extend(last: SequenceUpdate, update: SequenceUpdate) -> None:
    """Make an update say what the next one of its sequence says, too."""
    last.token_ids += update.token_ids
    if update.logprobs is not None:
        last.logprobs = (last.logprobs or []) + update.logprobs
    last.cumulative_logprob, last.time = update.cumulative_logprob, update.time
    last.finish_reason, last.stop_reason = update.finish_reason, update.stop_reason
    last.num_accepted += update.num_accepted
    last.num_rejected += update.num_rejected
    last.pooled = update.pooled
