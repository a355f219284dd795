"""Quotas: how many requests and tokens a tenant may use in a minute, and how many of its requests may run at once.

The minute slides: what was taken counts for 60 s, and for up to `GRAIN` longer. So no minute, wherever it begins, has
more than the quota; a token bucket, which refills while a burst empties it, lets twice as much through. Nothing below
the quota is refused, but for what the last `GRAIN` of a minute holds.

    request      1 when it begins; it stays counted, whatever becomes of it
    tokens       those of its prompts and as many as its answer may have (`max_tokens` of each sequence), when it
                 begins; what the answer did not have is given back when it ends, which is OpenAI's way
    concurrent   1 while it runs, or waits for a shard

What is refused takes nothing. All of this happens on the event loop between two awaits, in microseconds: entries of one
`GRAIN` are one, so that there are no more than 961 of a quota.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from octavo.errors import BadRequest, QuotaExceeded
from octavo_serve.api.tenants import Tenant

Quota = Literal["requests", "tokens", "concurrent"]

MINUTE = 60.0
GRAIN = 1 / 16
"""Seconds; what is taken within them is forgotten at once. A power of two, so that sums of times are exact."""
AGAIN = 1.0
"""Seconds until a tenant with too many running requests may ask again: nobody knows when one ends."""


@dataclass(slots=True, eq=False)
class Grain:
    """What was taken in one `GRAIN`, and until when that counts."""

    until: float
    amount: int


class Window:
    """What was taken of one quota in the last minute.

    Attributes:
        taken: the sum.
    """

    def __init__(self) -> None:
        self.taken = 0
        self._grains: deque[Grain] = deque()

    def take(self, amount: int, now: float) -> Grain:
        """Count so much from now on; the answer is for `give_back`."""
        until = (math.floor(now / GRAIN) + 1) * GRAIN + MINUTE
        if not self._grains or self._grains[-1].until < until:
            self._grains.append(Grain(until, 0))
        self.taken += amount
        self._grains[-1].amount += amount
        return self._grains[-1]

    def give_back(self, grain: Grain, amount: int) -> None:
        """Count so much less of what was taken, unless it has been forgotten."""
        amount = min(amount, grain.amount)
        grain.amount -= amount
        self.taken -= amount

    def seconds_until(self, free: int, now: float) -> float:
        """Until no more than `free` of what is taken now still counts."""
        self.forget(now)
        left, until = self.taken, now
        for grain in self._grains:
            if left <= free:
                break
            left, until = left - grain.amount, grain.until
        return until - now

    def reset(self, now: float) -> float:
        """Until nothing of what is taken now still counts, in seconds."""
        self.forget(now)
        return self._grains[-1].until - now if self.taken else 0.0

    def forget(self, now: float) -> None:
        """Drop what is older than a minute."""
        while self._grains and self._grains[0].until <= now:
            grain = self._grains.popleft()
            self.taken -= grain.amount
            grain.amount = 0


@dataclass(slots=True)
class _Used:
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    running: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of one quota.

    Attributes:
        reset: seconds until all of it is there again, if nothing more is taken.
    """

    kind: Quota
    limit: int
    remaining: int
    reset: float


class Taken:
    """What a running request holds of its tenant's quotas.

    Attributes:
        unused: tokens of its answer that were taken and have not come.
    """

    def __init__(self, used: _Used | None = None, grain: Grain | None = None, unused: int = 0) -> None:
        self.unused = unused
        self._used, self._grain = used, grain

    def end(self) -> None:
        """The request has ended."""
        if self._used is None:
            return
        self._used.running -= 1
        if self._grain is not None:
            self._used.tokens.give_back(self._grain, max(0, self.unused))


class Quotas:
    """What all tenants have taken at one gateway.

    Attributes:
        refused: requests by tenant and quota.

    Args:
        clock: seconds, which never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, _Used] = {}
        self.refused: Counter[tuple[str, Quota]] = Counter()

    def check(self, tenant: Tenant) -> None:
        """Refuse a request whose tenant has nothing left, before anything is done for it.

        Raises:
            QuotaExceeded.
        """
        if tenant.limited:
            self._check(tenant, self._used(tenant), 1, self._clock())

    @contextmanager
    def taken(self, tenant: Tenant, prompt: int, answer: int) -> Iterator[Taken]:
        """Run a request within this.

        Args:
            prompt: tokens of its prompts.
            answer: tokens that its answer may have.

        Raises:
            QuotaExceeded: so much is not left; it says when it will be.
            BadRequest: so much is never granted.
        """
        taken = self._take(tenant, prompt, answer) if tenant.limited else Taken()
        try:
            yield taken
        finally:
            taken.end()

    def _take(self, tenant: Tenant, prompt: int, answer: int) -> Taken:
        used, now = self._used(tenant), self._clock()
        most = tenant.tokens_per_minute
        if most is not None and prompt + answer > most:
            raise BadRequest(
                f"the prompt has {prompt} tokens and the answer may have {answer}, but {_name(tenant)} may use {most} "
                "in a minute: send less, or a lower max_tokens"
            )
        self._check(tenant, used, prompt + answer, now)
        used.running += 1
        if tenant.requests_per_minute is not None:
            used.requests.take(1, now)
        grain = None if most is None else used.tokens.take(prompt + answer, now)
        return Taken(used, grain, answer)

    def _check(self, tenant: Tenant, used: _Used, tokens: int, now: float) -> None:
        if tenant.max_concurrent is not None and used.running >= tenant.max_concurrent:
            self.refused[tenant.name, "concurrent"] += 1
            raise QuotaExceeded(f"{_name(tenant)} has {used.running} requests running, which is its limit", AGAIN)
        for quota, window, most in _windows(tenant, used):
            amount = tokens if quota == "tokens" else 1
            if (wait := window.seconds_until(most - amount, now)) > 0:
                self.refused[tenant.name, quota] += 1
                raise QuotaExceeded(
                    f"{_name(tenant)} may use {most} {quota} in a minute, has used {window.taken}, and this takes "
                    f"{amount}: try again in {wait:.1f} s",
                    wait,
                )

    def standing(self, tenant: Tenant) -> list[Standing]:
        """What is left of the tenant's quotas by the minute."""
        used, now = self._used(tenant), self._clock()
        found = []
        for quota, window, most in _windows(tenant, used):
            reset = window.reset(now)
            found.append(Standing(quota, most, max(0, most - window.taken), reset))
        return found

    def keep(self, names: Collection[str]) -> None:
        """Forget all other tenants."""
        self._of = {name: used for name, used in self._of.items() if name in names}
        self.refused = Counter({key: count for key, count in self.refused.items() if key[0] in names})

    def _used(self, tenant: Tenant) -> _Used:
        return self._of.setdefault(tenant.name, _Used())


def _windows(tenant: Tenant, used: _Used) -> Iterator[tuple[Quota, Window, int]]:
    """The quotas by the minute that the tenant has."""
    if tenant.requests_per_minute is not None:
        yield "requests", used.requests, tenant.requests_per_minute
    if tenant.tokens_per_minute is not None:
        yield "tokens", used.tokens, tenant.tokens_per_minute


def _name(tenant: Tenant) -> str:
    return f"the tenant {tenant.name!r}"
