"""GET /v1/usage: what was done for a tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from octavo_serve.api.failures import Forbidden
from octavo_serve.api.fields import Name
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation, Query
from octavo_serve.api.service import Service
from octavo_serve.api.usage import HOUR, HOURS, Usage
from octavo_serve.surfaces.openai.errors import ERRORS

NUMBERS = 8
"""Numbers of an entry."""


class Wanted(Query):
    """Whose usage, and of how many hours, one by one; None: all since the gateway began, in one sum."""

    tenant: Name | None = None
    hours: Annotated[int, Field(ge=1, le=HOURS)] | None = None


class ModelUsage(TypedDict):
    """What was done for a tenant with a model from `start` on, in seconds since 1970; see `octavo_serve.api.usage`."""

    start: int
    tenant: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    reasoning_tokens: int
    engine_seconds: float | None
    cost: float | None


class UsageList(TypedDict):
    """Of the gateway that answers; its name is there where there are several."""

    object: Literal["list"]
    gateway: str | None
    data: list[ModelUsage]


async def _usage(service: Service, call: Call) -> Listing:
    wanted: Wanted = call.query
    own, operates = call.caller.tenant.name, call.rules.operates(call.caller)
    if not operates and wanted.tenant not in (None, own):
        raise Forbidden("the usage of other tenants is told to operators: leave tenant out")
    tenant = wanted.tenant if operates else own
    exact = call.tells or call.rules.isolate_cache
    found = [
        (start, key, used)
        for start, table in _tables(service, wanted.hours)
        for key, used in table.items()
        if tenant in (None, key[0])
    ]
    return Listing(
        count=len(found),
        entry=lambda number: _entry(*found[number], exact=exact),
        weight=NUMBERS,
        at=("data",),
        before={"object": "list", "gateway": service.telemetry.gateway or None},
    )


def _tables(service: Service, hours: int | None) -> list[tuple[int, dict[tuple[str, str], Usage]]]:
    ledger = service.telemetry.ledger
    if hours is None:
        return [(ledger.begun, ledger.usage)]
    return [(hour * HOUR, table) for hour, table in sorted(ledger.hours.items()) if hour > ledger.hour - hours]


def _entry(start: int, key: tuple[str, str], used: Usage, *, exact: bool) -> ModelUsage:
    """An entry; not `exact` without what follows from the prefix cache, which others' prompts fill too."""
    return {
        "start": start,
        "tenant": key[0],
        "model": key[1],
        "requests": used.requests,
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens if exact else None,
        "completion_tokens": used.completion_tokens,
        "reasoning_tokens": used.reasoning_tokens,
        "engine_seconds": used.engine_seconds if exact else None,
        "cost": used.cost if exact else None,
    }


USAGE = Operation(
    method="GET",
    path="/v1/usage",
    summary="What was done for the caller's tenant, and what it costs",
    query=Wanted,
    answers=UsageList,
    run=_usage,
    errors=ERRORS,
)
