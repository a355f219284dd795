"""Which request stopped a shard.

A process that dies does not say which request was to blame, so it is found out by what dies next:

    together    the request ran with others when the shard was lost: it may be guilty, and runs alone on the next one
    waiting     it was to run alone there and had not begun: it is as before
    alone       the shard was running it in steps of its own (`Request.alone`): only it can be guilty

Who runs at a shard beside one that is alone is not in its steps, and is not suspected when that shard dies. The shard
says when a request begins to be alone and when that is over: an update without tokens each. What it said last has
arrived, because it waits for that before it goes on (`async_engine`). If it has not, the request is suspected again,
and tried once more.

A request is refused after CERTAIN deaths of shards that only it can have stopped: it was alone, or the only one there
that this gateway knows of. One death is not enough, for machines die too, and on a machine that dies somebody is often
alone. They are deaths in a row. A request that was alone and went on has passed the place at which its last shard died,
and so has one that was alone at both deaths and had told more tokens, of each of its sequences, at the second.

Nothing that a dying process leaves behind tells a crash from a kill: out of memory, both are SIGKILL. How often shards
die otherwise does. Where they die every few seconds, an innocent request is hit twice in a row now and then. So each
further death in the last CALM_SECONDS that nobody is suspected or refused for asks for one death more (`Deaths`).
In a simulation of 50 kills at random, one every 2.5 s, at two shards with 16 streams and trials of 0.3 s, two deaths
made an innocent request guilty in 11 of 20 runs; this rule did in one.

A lost link is no death: the network may be cut, or a machine asleep. Whether the shard has died shows later. Where it
can be reached again, the loss is forgotten. It has died where nobody listens at its port any more, or Serve has taken
it off its list. The request does not wait for that and goes on, alone. Only before its refusal it waits. A shard that
answered until Serve took it off its list was ended by Serve, and nobody is suspected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

CERTAIN = 2

CALM_SECONDS = 300.0
"""A death is forgotten after so long."""

CLEARED_WEIGHT = 4
"""A request that has passed the place at which a shard died has most likely not stopped it, but its fault may come and
go. So that it does not stop shards for ever, so many such deaths count as one that it may have caused."""


@dataclass(slots=True)
class _Loss:
    """A shard that was lost.

    Attributes:
        sole: whether only this request can have stopped it.
        died: whether it is known to have died.
        told: if the request was alone, the tokens that each of its living sequences had told; else empty, for what the
            last steps told may be lost.
    """

    sole: bool
    died: bool
    told: Mapping[int, int]


class Suspicion:
    """Of one request.

    Attributes:
        alone: whether the next shard is to run it alone.
        phase: how it runs where it is now.
    """

    def __init__(self) -> None:
        self.alone = False
        self.phase: Literal["together", "waiting", "alone"] = "together"
        self._losses: dict[str, _Loss] = {}  # by shard
        self._cleared: set[str] = set()  # shards that died at a place which it has passed since

    def enters(self) -> None:
        """It is sent to a shard."""
        self.phase = "waiting" if self.alone else "together"

    def turns(self) -> None:
        """The shard says that the request begins to be alone, or that this is over: then it is suspected no more."""
        self.phase = "alone" if self.phase == "waiting" else "together"
        self.alone = self.phase == "alone"
        if not self.alone:
            self._cleared.update(self._losses)
            self._losses.clear()

    def loses(self, shard: str, others: Collection[Suspicion], told: Mapping[int, int], *, died: bool) -> None:
        """The shard that has it is lost.

        Args:
            others: of the requests that are there too.
            told: tokens that each of its living sequences has told, by index.
            died: whether it is known to have died.
        """
        beside = any(other.phase == "alone" for other in others if other is not self)
        if self.phase == "waiting" or (beside and self.phase == "together"):
            return
        only = all(other is self for other in others)
        if self.phase != "alone":
            told = {}
        for other, loss in list(self._losses.items()):
            if told and loss.told and all(count > loss.told.get(index, 0) for index, count in told.items()):
                self._cleared.add(other)  # it has passed that place
                del self._losses[other]
        self.alone = True
        self._losses[shard] = _Loss(self.phase == "alone" or only, died, told)

    def lives(self, shard: str) -> None:
        """A shard that was lost is there again."""
        self._losses.pop(shard, None)
        self._cleared.discard(shard)

    def died(self, shard: str) -> None:
        """A shard that was lost will not be there again."""
        if (loss := self._losses.get(shard)) is not None:
            loss.died = True

    @property
    def losses(self) -> AbstractSet[str]:
        """Shards that it may have stopped."""
        return self._losses.keys()

    @property
    def sole_losses(self) -> Collection[str]:
        """Shards that it has stopped, if any request has."""
        return [shard for shard, loss in self._losses.items() if loss.sole]

    @property
    def num_losses(self) -> int:
        """How many shards it may have stopped; see CLEARED_WEIGHT."""
        return len(self._losses) + len(self._cleared) // CLEARED_WEIGHT

    def is_guilty(self, certain: int) -> bool:
        """Whether it is to be refused; `certain` as `Deaths.certain` says."""
        return sum(loss.sole and loss.died for loss in self._losses.values()) >= certain

    def is_undecided(self, certain: int) -> bool:
        """Whether that depends on what is not known yet."""
        return not self.is_guilty(certain) and len(self.sole_losses) >= certain


class Deaths:
    """Shards that a gateway has lost lately.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lost: dict[str, float] = {}  # when, by shard; the first is the oldest

    def add(self, shard: str) -> None:
        """A shard is lost."""
        self._lost[shard] = self._clock()

    def forget(self, shards: Iterable[str]) -> None:
        """Some are there again, or it is known who has stopped them."""
        for shard in shards:
            self._lost.pop(shard, None)

    def certain(self, suspicion: Suspicion, everybody: Iterable[Suspicion]) -> int:
        """Deaths that only one request can have caused and after which it is refused.

        Args:
            everybody: of the requests that run; a death is theirs if only one of them can have caused it.
        """
        since = self._clock() - CALM_SECONDS
        self.forget([shard for shard, lost in self._lost.items() if lost < since])
        explained = {shard for other in everybody for shard in other.sole_losses}
        return CERTAIN + len(self._lost.keys() - explained - suspicion.losses)
