"""Usage: what was done for each tenant, and what it costs by the prices in the config."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from octavo.cost_model import Cost, attended
from octavo_serve.api.model import Price, ServedModel
from octavo_serve.api.quotas import Quotas
from octavo_serve.api.tenants import Tenant

Key = tuple[str, str]
"""A tenant's name, and a model's."""

MILLION = 1_000_000
HOUR, HOURS = 3600, 24
OTHERS = "other"
"""Stands for tenants that the config does not have any longer."""


@dataclass(slots=True)
class Usage:
    """What was done for a tenant with one model.

    Attributes:
        requests: that began, whatever became of them.
        prompt_tokens: of prompts that had a first token, those found in the prefix cache among them.
        completion_tokens: that came, also for clients that did not wait for the rest; reasoning among them.
        engine_seconds: what computing this takes by the cost model; see `seconds_of`.
        cost: by the prices at that time.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    engine_seconds: float = 0.0
    cost: float = 0.0

    def add(self, other: Usage) -> None:
        """Count what another one has counted."""
        self.requests += other.requests  # each by its name: all requests do this twice
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.engine_seconds += other.engine_seconds
        self.cost += other.cost

    def prompt(self, cost: Cost, tokens: int, cached: int, lengths: Sequence[int]) -> None:
        """Count a prompt, and what its sequences have generated."""
        self.prompt_tokens += tokens
        self.cached_tokens += cached
        self.completion_tokens += sum(lengths)
        self.engine_seconds += seconds_of(cost, tokens, cached, lengths)

    def price(self, price: Price) -> None:
        """Set what it costs."""
        computed = self.prompt_tokens - self.cached_tokens
        amounts = (
            price.prompt * computed + price.cached * self.cached_tokens + price.completion * self.completion_tokens
        )
        self.cost = amounts / MILLION


COUNTED: ContextVar[Usage | None] = ContextVar("counted", default=None)
"""What is done for requests of this context is counted there too."""


def seconds_of(cost: Cost, prompt: int, cached: int, lengths: Sequence[int]) -> float:
    """Seconds that a prompt and its sequences add to the steps that compute them.

    What a step takes whoever is in it (`Cost.step`) is nobody's, and what the prefix cache saved is not charged.

    Args:
        lengths: tokens that each sequence has generated.
    """
    computed = prompt - cached
    seconds = cost.token * computed + cost.attended * attended(cached, computed) + cost.context * prompt
    each = cost.token + cost.sequence
    reach = cost.attended + cost.context
    return seconds + sum(each * length + reach * attended(prompt, length) for length in lengths)


class Ledger:
    """The quotas and the usage of a gateway's tenants.

    Attributes:
        quotas: see there.
        usage: by tenant and model, since `begun`.
        hours: the same by the hour in which requests ended, of the last `HOURS`; hours are counted since 1970.
        begun: seconds since 1970.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.quotas = Quotas()
        self.usage: dict[Key, Usage] = {}
        self.hours: dict[int, dict[Key, Usage]] = {}
        self._clock = clock
        self.begun = int(clock())

    @contextmanager
    def entry(self, tenant: Tenant, model: ServedModel, prompt: int, answer: int) -> Iterator[Usage]:
        """Run a request within this; what it yields takes in what is done for it.

        Args:
            prompt, answer: see `Quotas.taken`.

        Raises:
            QuotaExceeded, BadRequest: as there.
        """
        used = Usage(requests=1)
        with self.quotas.taken(tenant, prompt, answer) as taken:
            try:
                yield used
            finally:
                taken.unused -= used.completion_tokens
                used.price(model.price)
                self._add((tenant.name, model.name), used)
                if (counted := COUNTED.get()) is not None:
                    counted.add(used)

    @property
    def hour(self) -> int:
        """That it is now, counted since 1970."""
        return int(self._clock()) // HOUR

    def _add(self, key: Key, used: Usage) -> None:
        hour = self.hour
        if hour not in self.hours:
            self.hours = {known: table for known, table in self.hours.items() if hour - HOURS < known < hour}
        for table in (self.usage, self.hours.setdefault(hour, {})):
            table.setdefault(key, Usage()).add(used)

    def keep(self, names: Collection[str]) -> None:
        """These are the tenants from now on; what all others had used is that of `OTHERS`."""
        self.quotas.keep(names)
        for tenant, model in [key for key in self.usage if key[0] not in names and key[0] != OTHERS]:
            self.usage.setdefault((OTHERS, model), Usage()).add(self.usage.pop((tenant, model)))
