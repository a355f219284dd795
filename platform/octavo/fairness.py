"""The order of a queue, by name, and what each tenant has had of the machine.

    fcfs      in order of arrival; those below all others (`octavo.request.BELOW_ALL`) last, as everywhere
    priority  lower priorities first; of one priority, whose first token is due first. Who has no deadline is due
              `PATIENT` seconds after it came, so without deadlines this is the order of arrival
    fair      lower priorities first; of one priority, the least served tenant first; of one tenant, in the order above

A tenant's level is what it has had of the machine in seconds of the cost model, over its weight. What a cached prefix
saves is no work and raises no level. What runs goes on, and finds in the cache what it left there, until its tenant is
a turn ahead of another that waits (the quantum of DLPM, Cao et al. 2025, arXiv 2501.14312, in seconds). Then it gives
way to that one: its prompts are computed later, and its places and blocks are taken if they are needed.

Who begins to wait is lifted to a turn below the least served who waits, so that all others give way to it at once. It
has saved nothing else up while it was away (the lift of VTC, Sheng et al. 2024, arXiv 2401.00588). While nobody waits
everybody gets all they ask for, and all levels are equal.

Somebody who may run is never held back for another who may not: shares only decide who goes first.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from octavo.request import BELOW_ALL

SchedulingPolicy = Literal["fcfs", "priority", "fair"]

TURN = 8.0
"""Steps that are a turn, of a tenant with weight 1 in a step alone: the prompts of most requests take no more. Less
would cut prompts of tenants who both send long ones into each other."""

PATIENT = 60.0
"""Seconds after which a request without a deadline counts as due: no stream of deadlines starves it."""

MOST_TENANTS = 1024
"""Levels that are kept, but for those of tenants that wait: 100 bytes each."""


class Place(NamedTuple):
    """Where a request queues among those of its tenant: lower goes first.

    Attributes:
        due: when its first token is, in seconds of the queue's clock.
        number: of its arrival.
    """

    priority: int
    due: float
    number: int


def place_of(
    policy: SchedulingPolicy, priority: int, deadline: float | None, now: float, number: int, *, resumed: bool = False
) -> Place:
    """Where a request that comes now queues.

    Args:
        deadline: seconds until its first token must come.
        resumed: it goes on where another shard left it: its reader is in the middle of the answer.
    """
    if policy == "fcfs":
        return Place(priority if priority >= BELOW_ALL else 0, -math.inf if resumed else 0.0, number)
    return Place(priority, -math.inf if resumed else now + (PATIENT if deadline is None else deadline), number)


def gives_way(level: float, other: float, weight: float, step: float) -> bool:
    """Whether a tenant at a level gives way to another.

    Args:
        other, weight: level and weight of the one that waits.
        step: seconds of a step.
    """
    return level - other > TURN * step / weight


class Shares:
    """Levels of tenants. A tenant waits as long as any of its requests does.

    Attributes:
        least: the lowest level of those who waited when the step under way began; it never falls while somebody waits.
        step: seconds of the longest of the last steps.
    """

    def __init__(self) -> None:
        self.least = self.step = 0.0
        self._levels: dict[str, float] = {}
        self._waiting: set[str] = set()

    def waits(self, tenant: str, weight: float) -> None:
        """A tenant begins to wait."""
        if not self._waiting:
            self._levels.clear()
            self.least = 0.0
        lifted = self.least - TURN * self.step / weight
        self._levels[tenant] = max(self._levels.get(tenant, lifted), lifted)
        self._waiting.add(tenant)
        if len(self._levels) > MOST_TENANTS + len(self._waiting):
            self._forget()

    def served(self, tenant: str) -> None:
        """Nothing of a tenant waits any more."""
        self._waiting.discard(tenant)

    def charge(self, seconds: dict[str, float], weights: dict[str, float]) -> None:
        """A step begins, in which tenants have so many seconds."""
        self.step = max(sum(seconds.values()), 0.95 * self.step)
        self.least = max(self.least, min((self._levels[tenant] for tenant in self._waiting), default=0.0))
        for tenant, more in seconds.items():
            self._levels[tenant] = self.level(tenant) + more / weights[tenant]

    def level(self, tenant: str) -> float:
        """What a tenant has had."""
        return self._levels.get(tenant, self.least)

    def _forget(self) -> None:
        """Of those who do not wait, who is least over its share."""
        idle = sorted((level, tenant) for tenant, level in self._levels.items() if tenant not in self._waiting)
        for _, tenant in idle[: len(idle) // 2]:
            del self._levels[tenant]
