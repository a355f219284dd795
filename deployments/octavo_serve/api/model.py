"""A served model in the gateway: its tokenizer, and a protocol for its shards."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from octavo.cost_model import NO_COST, Cost
from octavo.errors import BadRequest
from octavo.request import (
    BELOW_ALL,
    MAX_DEADLINE,
    SAMPLE,
    Adapter,
    Placement,
    Request,
    SamplingParams,
    SequenceUpdate,
)
from octavo.text.responses.families import AUTO
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.tenants import Tenant
from octavo_serve.wire.messages import Courses, ModelInfo


class Claim(NamedTuple):
    """What a request that is about to come has a right to.

    Attributes:
        tenant, weight: as of `Request`.
        due: when its first token must come, in monotonic seconds; None: whenever it can.
    """

    tenant: str = ""
    weight: float = 1.0
    due: float | None = None

    @classmethod
    def of(cls, deadline_ms: float | None, tenant: Tenant) -> Claim:
        """Of a tenant's request that comes now and whose first token must come in so many milliseconds.

        Raises:
            BadRequest: they are out of bounds.
        """
        if deadline_ms is None:
            return cls(tenant.name, tenant.weight)
        if not 0 < deadline_ms <= 1000 * MAX_DEADLINE:
            raise BadRequest(f"deadline_ms must be more than 0 and at most {1000 * MAX_DEADLINE:.0f}", "deadline_ms")
        return cls(tenant.name, tenant.weight, time.monotonic() + deadline_ms / 1000)

    @property
    def seconds_left(self) -> float | None:
        """Until its first token must come; a moment, where that has passed: it is refused where it runs next."""
        return None if self.due is None else max(self.due - time.monotonic(), 1e-3)


NO_CLAIM = Claim()


class ModelClient(Protocol):
    """The shards of one model."""

    async def describe(self) -> ModelInfo: ...

    def admitted(
        self, key: Callable[[], bytes], sequences: int, tokens: int, claim: Claim = NO_CLAIM
    ) -> AbstractContextManager[None]:
        """Accept a request that is about to come, or refuse it at once; it is prepared within this.

        Args:
            key: names it, and the same when it comes again; asked for only where it matters.
            sequences: that it becomes.
            tokens: of its prompts, about.
            claim: whose it is, and when its first token must come.

        Raises:
            Overloaded, ModelNotReady: it would wait too long; with when to come again.
            DeadlineMissed: it would come too late.
        """
        ...

    def generate(self, request: Request) -> AsyncGenerator[list[SequenceUpdate], None]:
        """Stream a request's updates; updates that arrive while the caller is busy come in one list.

        Closing the stream aborts the request. A caller that does not read holds no place at a shard once all has come.

        Raises:
            BadRequest, Overloaded, EngineDead.
        """
        ...

    def placement(self, request_id: str) -> Placement | None:
        """Where a request with an open stream was sent; None before it was sent, and without a router."""
        ...

    async def abort(self, request_id: str, index: int) -> None:
        """End one sequence of a request; the others continue."""
        ...

    async def courses(self, shard: str, request_id: str, block: bytes) -> Courses | None:
        """Where a request's time went at a shard, and how a block left it; None if the shard does not say."""
        ...

    def held(self) -> Mapping[str, Container[bytes]]:
        """Hashes of the blocks that each shard holds, as far as is known here."""
        ...


class Updated(NamedTuple):
    """Other weights have come.

    Attributes:
        weights: their hash.
        shards: that serve them.
        load_seconds, switch_seconds: while the old ones served, and until all shards had gone over.
    """

    weights: str
    shards: int
    load_seconds: float
    switch_seconds: float


class Keeper(Protocol):
    """Who changes what a model's shards have in memory (`octavo_serve.gateway.keeper`)."""

    async def sleep(self, level: int) -> None: ...

    async def wake_up(self) -> None: ...

    async def update(self, path: str) -> Updated: ...


@dataclass(frozen=True, slots=True)
class Defaults:
    """Defaults for what a request leaves out.

    Attributes:
        max_tokens: most tokens of a chat's answer; None means as many as the context holds.
        sampling: recommended values by names of `SamplingParams`.
        response_template: how a chat's answers are read (see `octavo.text.responses.families.template_of`).
        yes_no: documents are ranked by the model's answer to whether they meet a query.
    """

    max_tokens: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    response_template: str = AUTO
    yes_no: bool = False

    def fill_in(self, params: SamplingParams, given: Mapping[str, object], room: int) -> None:
        """Set the parameters that a request leaves out.

        Args:
            given: parameters in the request, by the names of `SamplingParams`.
            room: tokens that the context holds beside the prompt.
        """
        for name, value in self.sampling.items():
            decided = name == "temperature" and given.get("top_p") == 0  # top_p of 0 is greedy already
            decided = decided or (params.beams is not None and name in SAMPLE)
            if given.get(name) is None and not decided:
                setattr(params, name, value)
        if params.max_tokens is None and self.max_tokens is not None:
            params.max_tokens = max(params.min_tokens, min(self.max_tokens, room))


NO_DEFAULTS = Defaults()


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens, in whatever money the config counts in."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0


FREE = Price()


def unmeasured() -> Cost:
    """The cost model of a model without one."""
    return NO_COST


@dataclass(slots=True)
class ServedModel:
    """One entry of /v1/models."""

    name: str
    created: int  # seconds since 1970
    tokenizer: Tokenizer
    client: ModelClient
    defaults: Defaults = NO_DEFAULTS
    adapter: Adapter | None = None  # that its requests are computed with; `name` is the adapter's then
    price: Price = FREE
    cost: Callable[[], Cost] = unmeasured  # its shards' cost model

    def admitted(
        self, priority: int, key: Callable[[], bytes], sequences: int, tokens: int, claim: Claim = NO_CLAIM
    ) -> AbstractContextManager[None]:
        """As the client's. Requests below all others wait behind everybody, and whoever sends them looks for room."""
        return nullcontext() if priority >= BELOW_ALL else self.client.admitted(key, sequences, tokens, claim)
