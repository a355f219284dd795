"""What can be done with a stored response: fetch, follow, cancel and delete it, and list what it was made of."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo_serve.api.fields import Name
from octavo_serve.api.jobs import Asked
from octavo_serve.api.operation import Call, Names, Operation, Query, Streamed
from octavo_serve.api.service import Service
from octavo_serve.surfaces.responses.asking import Turn, chat_of, check_supported
from octavo_serve.surfaces.responses.background import cancel, current, delete, follow
from octavo_serve.surfaces.responses.errors import ERRORS
from octavo_serve.surfaces.responses.recalling import complete, items_of, known_of
from octavo_serve.surfaces.responses.schemas import Response, TurnBody
from octavo_serve.surfaces.responses.tools import tools_of

PATH = "/v1/responses/{response_id}"
MAX_LISTED = 100


class Fetch(Query):
    """Parameters of GET /v1/responses/{id}."""

    stream: bool = False
    starting_after: int | None = Field(default=None, ge=0, lt=2**63)
    include: Names | None = None
    include_obfuscation: bool = False


class Listing(Query):
    """Parameters of GET /v1/responses/{id}/input_items."""

    limit: int = Field(default=20, ge=1, le=MAX_LISTED)
    order: Literal["asc", "desc"] = "desc"
    after: Name | None = None
    include: Names | None = None


class Deleted(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(TypedDict):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(TypedDict):
    object: Literal["response.input_tokens"]
    input_tokens: int


async def _fetch(service: Service, call: Call) -> dict[str, Any] | Streamed:
    query: Fetch = call.query
    if query.include_obfuscation:
        raise BadRequest("include_obfuscation is not supported: leave it out", "include_obfuscation")
    response_id = call.path["response_id"]
    if query.stream:
        after = 0 if query.starting_after is None else query.starting_after + 1
        return await follow(service, call.caller.name, response_id, after)
    if query.starting_after is not None:
        raise BadRequest("starting_after needs stream to be true", "starting_after")
    return await current(service, call.caller.name, response_id)


async def _cancel(service: Service, call: Call) -> dict[str, Any]:
    return await cancel(service, call.caller.name, call.path["response_id"])


async def _delete(service: Service, call: Call) -> Deleted:
    response_id = call.path["response_id"]
    await delete(service, call.caller.name, response_id)
    return {"id": response_id, "object": "response", "deleted": True}


async def _input_items(service: Service, call: Call) -> ItemList:
    query: Listing = call.query
    items = await items_of(service, call.caller.name, call.path["response_id"])
    if query.order == "desc":
        items.reverse()
    begin = _position(items, query.after)
    page = items[begin : begin + query.limit]
    ends = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    more = begin + query.limit < len(items)
    return {"object": "list", "data": page, "first_id": ends[0], "last_id": ends[1], "has_more": more}


def _position(items: Sequence[dict[str, Any]], after: str | None) -> int:
    if after is None:
        return 0
    found = next((i for i, item in enumerate(items) if item["id"] == after), None)
    if found is None:
        raise BadRequest(f"after names {after[:80]!r}, which is no item of this list", "after")
    return found + 1


async def _input_tokens(service: Service, call: Call) -> InputTokens:
    body: TurnBody = call.body
    check_supported(body)
    tools = tools_of(body.tools or ())
    params = SamplingParams(max_tokens=1)
    chat, turn = chat_of(body, tools), Turn(key=secrets.token_hex(12), tools=tools)
    asked = Asked(kind="resp", model=body.model, content=chat, param="input", params=params, add_special_tokens=False)
    asked.known = known_of(await complete(service, call.caller.name, body, chat, turn))
    job = await service.job(call.admit(asked))
    return {"object": "response.input_tokens", "input_tokens": job.prompt_tokens}


OPERATIONS = (
    Operation(
        method="GET", path=PATH, summary="A stored response", answers=Response, run=_fetch, errors=ERRORS, query=Fetch
    ),
    Operation(method="DELETE", path=PATH, summary="Delete a response", answers=Deleted, run=_delete, errors=ERRORS),
    Operation(
        method="POST",
        path=f"{PATH}/cancel",
        summary="Cancel a response that runs in the background",
        answers=Response,
        run=_cancel,
        errors=ERRORS,
    ),
    Operation(
        method="GET",
        path=f"{PATH}/input_items",
        summary="The items that a response was made of",
        answers=ItemList,
        run=_input_items,
        errors=ERRORS,
        query=Listing,
    ),
    Operation(
        method="POST",
        path="/v1/responses/input_tokens",
        summary="Tokens of a prompt",
        answers=InputTokens,
        run=_input_tokens,
        errors=ERRORS,
        body=TurnBody,
    ),
)
