"""/v1/requests/{id}/explain: where a request's time went, and why its prefix was found or not."""

from __future__ import annotations

from octavo_serve.api.explaining import Story
from octavo_serve.api.explanation import Explanation, Reader
from octavo_serve.api.explanation import explain as explained
from octavo_serve.api.failures import NotKept
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.openai.errors import ERRORS


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
        return "this server explains no requests: set explain_bytes in the config's gateway settings"
    return (
        f"nothing is remembered of a request {job_id!r:.80} of this key: it is an answer's id, of one of the last "
        "requests; where there are several gateways, only the one that answered knows it"
    )


EXPLAIN = Operation(
    method="GET",
    path="/v1/requests/{id}/explain",
    summary="Where a request's time went, and why its prefix was found in the cache or not",
    answers=Explanation,
    run=explain,
    errors=ERRORS,
)
