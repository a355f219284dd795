"""Whether a request may wait, and when else it should come again: what bounds every queue in seconds and in tokens.

    ahead        seconds until a request that comes now begins: the shards' own prediction for the one that is soonest
                 free, and what waits for any of them over the rate at which they all take new sequences
    accepted     ahead <= max_seconds, and the prompts that wait have at most max_tokens in sum

Only what is ahead counts, not the request itself: an idle shard takes any prompt, however long that is. Where fewer
than `FEW` sequences per shard run or wait, the next one is accepted whatever is ahead of it: a machine that computes a
prompt for a minute still serves a few clients, who would otherwise be refused because one other is served.

A model that can have more shards is judged by the sooner of two predictions: with the shards that are there, and with
all of them after the time that a shard took to come. The second holds only where no shard takes more from this gateway,
for else the request is sent to one that is there.

A refused request is told when there will be room, in a queue of those who were refused: each is told a time that is
later by one request's share than that of the one before, so that they do not come back all at once. The share is
multiplied by the part of the refused requests that do come back, as seen of late. Nobody is told more than the shares
of all who have been told and have not come yet, so that a flood of requests that never come back delays the others no
longer than it takes to see that. One that comes back when it was told finds bounds that are larger by `_RETURNING`, so
that those who have just come do not take the places of those who were sent away. It is known by a key that is the same
when it comes again.

Where tenants share the machine (`octavo.fairness`), only what is ahead of a request of its own tenant counts: a part of
all that is ahead, so that who fills the queue is refused before who does not.

    part         the tenant's sequences here over all, times all tenants' weights over its own; at most 1

A request with a deadline is refused where its first token is predicted to come later than that (`check_deadline`).

One gateway decides by what it sees: the shards' reports count what all gateways have sent there. What waits in other
gateways is guessed from their share of what runs.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from octavo.errors import DeadlineMissed, Overloaded
from octavo.load import ShardState

MARGIN = 1.6
"""Times what is predicted: nearly all that are accepted are to have their first token in time."""

FEW = 4
"""Sequences per shard that may always be there: at a minute for each, the last is answered before the ten minutes after
which OpenAI's SDKs give up."""

_RETURNING = 1.25
_EARLY = 0.05
"""Seconds by which clocks may differ."""
_GRACE = 5.0
"""Seconds after which who was told to come back is not expected any more."""
_LONGEST = 20.0
"""Times `max_seconds` that anybody is told to stay away, at most."""
_REMEMBERED = 10_000
"""Refused requests, about 300 bytes each."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait for one model.

    Attributes:
        max_seconds: until a request begins, as predicted.
        max_tokens: of prompts, in one gateway's queue and at the shards.
    """

    max_seconds: float = math.inf
    max_tokens: float = math.inf


UNLIMITED = QueueLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One shard as a gateway sees it.

    Attributes:
        state: with what was sent there since its last report.
        mine: sequences that this gateway has there.
        more: requests that this gateway may have there besides.
    """

    state: ShardState
    mine: int
    more: int

    @property
    def places(self) -> int:
        """Sequences that run there at once, as far as the gateway's own limit lets it fill them."""
        return max(1, min(self.state.max_num_seqs, self.state.num_sequences + max(0, self.more)))

    @property
    def start_seconds(self) -> float:
        """Until a request that comes now begins there, if it is the next of this gateway to be sent."""
        if self.more > 0:
            return self.state.start_seconds()
        one = self.state.starts_per_second(_mean_prompt(self.state), self.places)
        return max(self.state.start_seconds(), 1 / one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What no shard has taken yet.

    Attributes:
        sequences, tokens: of the requests that wait in this gateway.
        growth: shards that there can be for each that is there; 1.0 where there will be no more.
        soon: seconds until the next shard is expected.
        rate: sequences per second that all shards can begin then, where none is there yet.
    """

    sequences: int = 0
    tokens: int = 0
    growth: float = 1.0
    soon: float = 0.0
    rate: float = math.inf


@dataclass(frozen=True, slots=True)
class Outlook:
    """A prediction.

    Attributes:
        ahead: seconds until a request that comes now begins.
        each: seconds by which every further one is later.
        tokens: of prompts that wait.
        few: fewer than `FEW` sequences per shard run or wait.
    """

    ahead: float
    each: float
    tokens: int
    few: bool = False

    def part(self, part: float) -> Outlook:
        """The same where only a part of it is ahead."""
        return replace(self, ahead=self.ahead * part, each=self.each * part, tokens=int(self.tokens * part))


def outlook(rooms: Sequence[Room], waiting: Waiting) -> Outlook:
    """What a request that comes now has before it.

    Args:
        rooms: of the shards that are there; without any, all depends on the next one.
    """
    tokens = waiting.tokens + sum(room.state.backlog_tokens for room in rooms)
    if not rooms:
        return Outlook(waiting.soon + waiting.sequences / waiting.rate, 1 / waiting.rate, tokens)
    mean = waiting.tokens / waiting.sequences if waiting.sequences else None
    rate = 0.0
    mine = all_of_them = 0
    for room in rooms:
        prompt = _mean_prompt(room.state) if mean is None else mean
        rate += room.state.starts_per_second(prompt, room.places)
        mine += room.mine
        all_of_them += room.state.num_sequences
    others = max(1.0, all_of_them / mine) if mine else 1.0  # gateways wait in proportion to what they have running
    queue = waiting.sequences * others
    now = min(room.start_seconds for room in rooms) + queue / rate
    if waiting.growth > 1 and all(room.more <= 0 for room in rooms):
        left = max(0.0, queue - rate * waiting.soon)
        now = min(now, waiting.soon + left / (rate * waiting.growth))
    return Outlook(now, 1 / rate, tokens, all_of_them + waiting.sequences < FEW * len(rooms))


def _mean_prompt(state: ShardState) -> float:
    """Tokens of a prompt that waits at a shard, on average; where none does, of those who run."""
    if unstarted := state.prefilling + state.queued:
        return state.backlog_tokens / unstarted
    return max(0.0, state.context / state.decoding - state.mean_output / 2) if state.decoding else 0.0


class Parts:
    """Whose the sequences are that run or wait: which part of them is ahead of a tenant's next one."""

    def __init__(self) -> None:
        self._sequences = Counter[str]()
        self._weights: dict[str, float] = {}

    def add(self, tenant: str, weight: float, sequences: int) -> None:
        """A request of so many comes."""
        self._sequences[tenant] += sequences
        self._weights[tenant] = weight

    def remove(self, tenant: str, sequences: int) -> None:
        """It has ended."""
        self._sequences[tenant] -= sequences
        if not self._sequences[tenant]:
            del self._sequences[tenant], self._weights[tenant]

    def of(self, tenant: str, weight: float) -> float:
        """The part of what is ahead of all that is ahead of a tenant's next request."""
        mine, everybody = self._sequences[tenant], self._sequences.total()
        weights = sum(self._weights.values()) + (0.0 if tenant in self._weights else weight)
        return min(1.0, mine * weights / (everybody * weight)) if everybody else 1.0


def check_deadline(expected: float, left: float) -> None:
    """Refuse a request whose first token would come too late.

    Args:
        expected: seconds to its first token, as predicted.
        left: seconds that it may take.

    Raises:
        DeadlineMissed: with what is possible.
    """
    if 0 < left >= MARGIN * expected:
        return
    raise DeadlineMissed(
        f"its first token would come in about {expected:.2f} s, which leaves too little of its {max(0.0, left):.2f} s: "
        f"allow for {MARGIN * expected:.2f} s, or try again when Retry-After says",
        MARGIN * expected - left,
    )


class Admission:
    """Accepts requests of one model, or tells them when to come again; no clock of its own.

    Attributes:
        limits: what may wait.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self._told: dict[bytes, float] = {}  # key -> when it was told to come
        self._order: list[tuple[float, bytes]] = []  # a heap of the same, and of those who have come meanwhile
        self._last = -math.inf  # of these times
        self._returning = 1.0  # part of those who were told a time that come again

    def admit(self, found: Outlook, key: Callable[[], bytes], now: float) -> None:
        """Let a request wait; it is not refused later.

        Args:
            key: names the request, and the same when it comes again; asked for only where it matters.
            now: monotonic seconds.

        Raises:
            Overloaded: too much is ahead of it.
        """
        over = self._over(found)
        if over <= 0 and not self._told:
            return
        self._forget(now)
        name = key() if self._told or over > 0 else b""
        due = self._told.get(name)
        if due is not None and (over <= 0 or due - _EARLY <= now):
            del self._told[name]
            self._learn(1.0)
            if self._over(found, _RETURNING) <= 0:
                return
            due = None
        if over <= 0:
            return
        if due is None:
            due = self._tell(name, found, now + over, now)
        raise Overloaded(self._why(found), due - now)

    def _over(self, found: Outlook, times: float = 1.0) -> float:
        """Seconds until what is ahead is little enough.

        Args:
            times: the bounds.
        """
        seconds = 0.0 if found.few else found.ahead - times * self.limits.max_seconds
        if found.tokens > (most := times * self.limits.max_tokens):
            seconds = max(seconds, found.ahead * (1 - most / found.tokens), 1e-3)
        return seconds

    def _tell(self, name: bytes, found: Outlook, earliest: float, now: float) -> float:
        each = found.each * self._returning
        later = min(max(earliest, self._last), earliest + each * len(self._told)) + each
        due = min(later, max(earliest, now + _LONGEST * self.limits.max_seconds))
        self._last = due
        if len(self._told) < _REMEMBERED:
            self._told[name] = due
            heapq.heappush(self._order, (due, name))
            if len(self._order) > 2 * len(self._told) + 64:  # most have come before their time
                self._order = sorted((due, name) for name, due in self._told.items())
        return due

    def _forget(self, now: float) -> None:
        while self._order and self._order[0][0] < now - _GRACE:
            due, name = heapq.heappop(self._order)
            if self._told.get(name) == due:
                del self._told[name]
                self._learn(0.0)

    def _learn(self, came: float) -> None:
        self._returning += (came - self._returning) / 16

    def _why(self, found: Outlook) -> str:
        if found.ahead > self.limits.max_seconds:
            return (
                f"a request that comes now would begin in {found.ahead:.0f} s; at most {self.limits.max_seconds:g} s "
                "are waited: try again when Retry-After says"
            )
        return (
            f"prompts of {found.tokens} tokens are waiting; at most {self.limits.max_tokens:.0f} may: try again when "
            "Retry-After says"
        )
