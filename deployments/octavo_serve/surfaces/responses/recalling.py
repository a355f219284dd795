"""What is kept of responses: how it is stored, found again, and how a response goes on from an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo_serve.api.bounds import LARGE_BODY
from octavo_serve.api.chats import FEW, Chat
from octavo_serve.api.failures import NotKept
from octavo_serve.api.jobs import Asked
from octavo_serve.api.prompts import LONG
from octavo_serve.api.records import Record
from octavo_serve.api.service import Service
from octavo_serve.surfaces.responses.asking import SEALED, Turn, instructions_of
from octavo_serve.surfaces.responses.items import Item, kind_of, messages_of, usual
from octavo_serve.surfaces.responses.schemas import Response, ResponsesRequest, TurnBody
from octavo_serve.surfaces.responses.sealing import seal, unseal

MAX_CHAIN = 1024
"""Responses that one goes on from."""


class Tokens(msgspec.Struct):
    """Token ids of a response's prompt and answer."""

    prompt: list[int]
    answer: list[int]


class Kept(msgspec.Struct):
    """What is stored of a response.

    Attributes:
        input: its own input's items, in the usual form.
    """

    response: dict[str, Any]
    input: list[dict[str, Any]]


_kept = msgspec.json.Decoder(Kept).decode
_tokens = msgspec.json.Decoder(Tokens).decode


@dataclass(slots=True)
class Past:
    """What a response goes on from.

    Attributes:
        items: of all earlier turns, the first one first.
        tokens: of the last one; None where they are not known.
    """

    items: list[Item] = field(default_factory=list)
    tokens: Tokens | None = None


def not_found(response_id: str) -> NotKept:
    """The error for an id under which nothing of this caller is kept."""
    return NotKept(f"there is no response {response_id[:80]!r} here: it was not stored, has expired or was deleted")


async def recall(service: Service, owner: str, body: ResponsesRequest, asked: Asked) -> None:
    """Complete what a body asks for with what is kept: the chat's messages, and the tokens that its prompt begins with.

    Raises:
        BadRequest: an earlier response or an item is gone, or sealed reasoning was changed.
        Overloaded: too many requests wait for what is kept.
    """
    turn: Turn = asked.context
    turn.owner, turn.keep = owner, None if body.store is False else partial(_keep, service, turn)
    if SEALED in (body.include or ()):
        turn.seal = partial(seal, await service.records.secret(), owner)
    past = await complete(service, owner, body, asked.content, turn)
    asked.known = known_of(past)


def known_of(past: Past) -> list[list[int]]:
    """Token ids that a prompt may begin with: the last turn's, with its answer, without what ended it, without it."""
    if past.tokens is None:
        return []
    prompt, answer = past.tokens.prompt, past.tokens.answer
    return [prompt + answer, prompt + answer[:-1], prompt]


async def items_of(service: Service, owner: str, response_id: str) -> list[dict[str, Any]]:
    """The items that a response was made of, the first one first: earlier turns as far as they are kept, its own input.

    Raises:
        NotKept: there is no such response of this caller.
    """
    records = await service.records.chain(owner, response_id, MAX_CHAIN, 4 * service.bounds.num_bytes)
    if not records:
        raise not_found(response_id)
    return await service.threads.run(_items_of, records)


def _items_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    last, *earlier = records
    items: list[dict[str, Any]] = []
    for record in reversed(earlier):
        kept = _kept(record.body)
        items += [*kept.input, *kept.response["output"]]
    return items + _kept(last.body).input


async def complete(service: Service, owner: str, body: TurnBody, chat: Any, turn: Turn) -> Past:
    """Give a chat its messages; returns what it goes on from."""
    assert isinstance(chat, Chat)
    past = Past()
    if body.previous_response_id is not None:
        past = await _past(service, owner, body.previous_response_id)
    given: str | Sequence[Item] = body.input if body.input is not None else []
    if not isinstance(given, str) and any(kind_of(item) == "item_reference" for item in given):
        given = await _resolved(service, owner, given)
    secret = await service.records.secret() if _is_sealed(past.items, given) else b""
    work = partial(_messages, instructions_of(body), past.items, given, partial(unseal, secret, owner))
    few = isinstance(given, str) or len(given) + len(past.items) <= FEW
    turn.items, chat.messages = work() if few else await service.threads.run(work)
    return past


def _messages(instructions: str | None, past: Sequence[Item], given: Any, unsealed: Any) -> tuple[list[Item], Any]:
    items = usual(given)
    return items, messages_of(instructions, [*past, *items], unsealed)


def _is_sealed(past: Sequence[Item], given: str | Sequence[Item]) -> bool:
    items = past if isinstance(given, str) else [*past, *given]
    return any(item.get("encrypted_content") for item in items)


async def _past(service: Service, owner: str, response_id: str) -> Past:
    records = await service.records.chain(owner, response_id, MAX_CHAIN, 4 * service.bounds.num_bytes)
    if not records:
        raise _gone(response_id)
    past = await service.threads.run(_past_of, records)
    if (missing := records[-1].previous) is not None:
        raise _gone(missing)
    return past


def _past_of(records: Sequence[Record]) -> Past:
    past = Past()
    for record in reversed(records):
        kept = _kept(record.body)
        status = kept.response["status"]
        if status not in ("completed", "incomplete"):
            raise BadRequest(
                f"the response {record.id!r} is {status}: only one that has ended by itself can be gone on from",
                "previous_response_id",
            )
        past.items += [*kept.input, *kept.response["output"]]
    past.tokens = _tokens(records[0].extra) if records[0].extra else None
    return past


def _gone(response_id: str) -> BadRequest:
    return BadRequest(
        f"previous_response_id: there is no response {response_id[:80]!r} here: it was not stored, has expired or was "
        "deleted; send its items as input",
        "previous_response_id",
    )


async def _resolved(service: Service, owner: str, given: Sequence[Item]) -> list[Item]:
    """The items with those that references name; an item's id tells whose output it is of."""
    known: dict[str, list[dict[str, Any]]] = {}
    found: list[Item] = []
    size, most = 0, 4 * service.bounds.num_bytes
    for item in given:
        if kind_of(item) != "item_reference":
            found.append(item)
            continue
        key = str(item["id"]).partition("_")[2].partition("_")[0]
        if key not in known:
            record = await service.records.get(owner, f"resp_{key}")
            size += 0 if record is None else len(record.body)
            if len(known) >= MAX_CHAIN or size > most:
                raise BadRequest("input refers to items of too many responses: send the items themselves", "input")
            known[key] = [] if record is None else (await decoded(service, record)).response["output"]
        named = next((one for one in known[key] if one["id"] == item["id"]), None)
        if named is None:
            raise BadRequest(
                f"input refers to the item {str(item['id'])[:80]!r}, which is not kept here: send the item itself",
                "input",
            )
        found.append(named)
    return found


async def decoded(service: Service, record: Record) -> Kept:
    """What a record holds; a large one is read in a thread."""
    if len(record.body) < LARGE_BODY:
        return _kept(record.body)
    return await service.threads.run(_kept, record.body)


async def _keep(service: Service, turn: Turn, response: Response, prompt: list[int], answer: list[int]) -> None:
    """Store a response that has ended."""
    work = partial(record_of, turn, response, Tokens(prompt, answer))
    record = await service.threads.finish(work) if len(prompt) + len(answer) >= LONG else work()
    await service.records.put(record, replaces=response["background"])


def record_of(turn: Turn, response: Response, tokens: Tokens | None) -> Record:
    """What is stored of a response."""
    kept = {"response": response, "input": turn.items}
    return Record(
        id=turn.id,
        owner=turn.owner,
        previous=response["previous_response_id"],
        body=msgspec.json.encode(kept),
        extra=b"" if tokens is None else msgspec.json.encode(tokens),
    )
