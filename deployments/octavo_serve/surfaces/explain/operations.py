"""/v1/requests/{id}/explain: where a request's time went, and why its prefix was found or not; /v1/requests: which."""

from __future__ import annotations

from itertools import islice
from typing import Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.explaining import Story
from octavo_serve.api.explanation import Explanation, Reader, RecentRequest, in_short
from octavo_serve.api.explanation import explain as explained
from octavo_serve.api.failures import NotKept
from octavo_serve.api.operation import Call, Operation, Query
from octavo_serve.api.service import Service
from octavo_serve.surfaces.openai.errors import ERRORS

NOT_KEPT = "this server explains no requests: set explain_bytes in the config's gateway settings"
LATEST = 1000
"""Requests among which the slowest are looked for."""


class RequestQuery(Query):
    """Parameters of GET /v1/requests."""

    limit: int = Field(default=20, ge=1, le=100)
    order: Literal["latest", "slowest"] = "latest"


class RequestList(TypedDict):
    """Requests that can be explained; `slowest` of the last thousand by seconds."""

    object: Literal["list"]
    data: list[RecentRequest]


async def requests(service: Service, call: Call) -> RequestList:
    """The last requests of the caller, or for an operator of everybody.

    Raises:
        NotKept: nothing is remembered here, or not of whom.
    """
    if service.explaining is None:
        raise NotKept(NOT_KEPT)
    if call.rules.keys is None and not call.rules.operates(call.caller):  # an id is all that keeps others from a text
        raise NotKept("without keys it is not known whose requests these are: they are not listed here")
    query: RequestQuery = call.query
    owner = None if call.rules.operates(call.caller) else call.caller.name
    slowest = query.order == "slowest"
    latest = islice(service.explaining.latest(owner), LATEST if slowest else query.limit)
    found = [in_short(job_id, story) for job_id, story in latest]
    if slowest:
        found.sort(key=lambda request: -request["seconds"])
    return {"object": "list", "data": found[: query.limit]}


async def explain(service: Service, call: Call) -> Explanation:
    """What is known of a request of the caller, or for an operator of any.

    Raises:
        NotKept: nothing is.
    """
    job_id = call.path["id"]
    owns, operates, stories = False, call.rules.operates(call.caller), list[Story]()
    if service.explaining is not None:
        stories = service.explaining.find(job_id) or service.explaining.find(job_id.replace("_", "-", 1))
        owns = bool(stories) and stories[0].prompt.owner == call.caller.name
    if not stories or not (owns or operates):
        raise NotKept(_nothing(service, job_id), "id")
    return await explained(job_id, stories, Reader(owns, operates, call.tells))


def _nothing(service: Service, job_id: str) -> str:
    if service.explaining is None:
        return NOT_KEPT
    return (
        f"nothing is remembered of a request {job_id!r:.80} of this key: it is an answer's id, of one of the last "
        "requests; where there are several gateways, only the one that answered knows it"
    )


REQUESTS = Operation(
    method="GET",
    path="/v1/requests",
    summary="Your last requests that can be explained; for operators everybody's",
    answers=RequestList,
    run=requests,
    errors=ERRORS,
    query=RequestQuery,
)
EXPLAIN = Operation(
    method="GET",
    path="/v1/requests/{id}/explain",
    summary="Where a request's time went, and why its prefix was found in the cache or not",
    answers=Explanation,
    run=explain,
    errors=ERRORS,
)
