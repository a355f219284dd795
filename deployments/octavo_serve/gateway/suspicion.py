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
alone. They are deaths in a row: a request that was alone and went on has passed the place at which its last shard died.

A lost link is no death: the network may be cut, or a machine asleep. Whether the shard has died shows later. Where it
can be reached again, the loss is forgotten. It has died where nobody listens at its port any more, or Serve has taken
it off its list. The request does not wait for that and goes on, alone. Only before its refusal it waits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

CERTAIN = 2


@dataclass(slots=True)
class _Loss:
    """A shard that was lost.

    Attributes:
        sole: whether only this request can have stopped it.
        died: whether it is known to have died.
    """

    sole: bool
    died: bool = False


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

    def enters(self) -> None:
        """It is sent to a shard."""
        self.phase = "waiting" if self.alone else "together"

    def turns(self) -> None:
        """The shard says that the request begins to be alone, or that this is over: then it is suspected no more."""
        self.phase = "alone" if self.phase == "waiting" else "together"
        self.alone = self.phase == "alone"
        if not self.alone:
            for loss in self._losses.values():
                loss.sole = False

    def loses(self, shard: str, others: Collection[Suspicion], *, died: bool) -> None:
        """The shard that has it is lost.

        Args:
            others: of the requests that are there too.
            died: whether it is known to have died.
        """
        beside = any(other.phase == "alone" for other in others if other is not self)
        if self.phase == "waiting" or (beside and self.phase == "together"):
            return
        only = all(other is self for other in others)
        self.alone = True
        self._losses[shard] = _Loss(self.phase == "alone" or only, died)

    def lives(self, shard: str) -> None:
        """A shard that was lost is there again."""
        self._losses.pop(shard, None)

    def died(self, shard: str) -> None:
        """A shard that was lost will not be there again."""
        if (loss := self._losses.get(shard)) is not None:
            loss.died = True

    @property
    def num_losses(self) -> int:
        """Shards that it may have stopped."""
        return len(self._losses)

    @property
    def is_guilty(self) -> bool:
        """Whether it is to be refused."""
        return sum(loss.sole and loss.died for loss in self._losses.values()) >= CERTAIN

    @property
    def is_undecided(self) -> bool:
        """Whether that depends on what is not known yet."""
        return not self.is_guilty and sum(loss.sole for loss in self._losses.values()) >= CERTAIN
