"""Responses that run without their client (`background: true`), and can be fetched, followed and cancelled.

The gateway that runs one says so in its record every few seconds. There it also sees that another gateway was told to
cancel it, or that it was deleted. Where nobody has said so for long, the gateway has ended: the response has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from octavo.errors import BadRequest, OctavoError, Overloaded
from octavo_serve.api.detached import DetachedRun
from octavo_serve.api.failures import failure_of
from octavo_serve.api.generation import run as run_job
from octavo_serve.api.operation import Streamed
from octavo_serve.api.pieces import Begun, Ended
from octavo_serve.api.records import Record
from octavo_serve.api.service import Service
from octavo_serve.api.surface import Writer, to_json
from octavo_serve.api.turns import PIECES
from octavo_serve.api.writing import write
from octavo_serve.surfaces.openai.framing import to_json_in_slices
from octavo_serve.surfaces.responses.errors import ERRORS
from octavo_serve.surfaces.responses.framing import FRAMING
from octavo_serve.surfaces.responses.recalling import Kept, decoded, not_found, record_of
from octavo_serve.surfaces.responses.schemas import Response, ResponseEvent, ResponsesRequest
from octavo_serve.surfaces.responses.writer import ResponseWriter

BEAT_SECONDS = 3.0
DEAD_SECONDS = 30.0
"""Seconds without a sign after which whoever ran a response counts as gone."""
RUNNING = ("queued", "in_progress")


async def detach(
    service: Service, body: ResponsesRequest, writer: Writer[Response, ResponseEvent]
) -> Response | Streamed | None:
    """Run a response in the background, if that is asked for; returns it as it is now, or its stream.

    Raises:
        Overloaded: too many run.
    """
    if not body.background:
        return None
    assert isinstance(writer, ResponseWriter)
    now, turn = writer.now(), writer.turn
    await service.records.put(replace(record_of(turn, now, None), alive=service.records.clock()))
    try:
        run = service.detached.start(turn.id, turn.owner, writer, partial(_perform, service), logs=bool(body.stream))
    except Overloaded:
        await service.records.delete(turn.owner, turn.id)
        raise
    return Streamed(FRAMING.media_type, _followed(run, 0)) if body.stream else now


async def _followed(run: DetachedRun, after: int) -> AsyncGenerator[bytes, None]:
    """A run's events as a stream; one that cannot go on ends with an error."""
    try:
        async with aclosing(run.follow(after)) as chunks:
            async for chunk in chunks:
                yield chunk
    except Exception as error:
        body = ERRORS.body(failure_of(error))
        yield FRAMING.frame(body, to_json(body))
    yield FRAMING.end


async def _perform(service: Service, run: DetachedRun) -> None:
    """Run a response to its end, whatever that is, and store it."""
    writer: ResponseWriter = run.state
    beat = asyncio.create_task(_beat(service, run))
    try:
        await _written(service, run)
    except asyncio.CancelledError:
        writer.cancelled()
        await writer.settle()
    except Exception as error:
        failure = failure_of(error)
        service.telemetry.failed(failure.status, failure.code)
        for event in writer.failed(failure):
            run.say(FRAMING.frame(event, to_json(event)))
        with suppress(Exception):
            await writer.settle()
    finally:
        beat.cancel()


async def _written(service: Service, run: DetachedRun) -> None:
    writer: ResponseWriter = run.state
    async with aclosing(run_job(writer.job)) as stream:
        async for elements in stream:
            for number, element in enumerate(elements, 1):
                if number % PIECES == 0:
                    await asyncio.sleep(0)
                said = await write(writer, [element], service.threads, _framed, _framed_large)
                if isinstance(element, Begun):
                    await _say_begun(service, run)
                if isinstance(element, Ended):
                    await writer.settle()
                for event in said:
                    run.say(event)


def _framed(event: ResponseEvent) -> bytes:
    return FRAMING.frame(event, to_json(event))


def _framed_large(event: ResponseEvent) -> bytes:
    return FRAMING.frame(event, to_json_in_slices(event))


async def _say_begun(service: Service, run: DetachedRun) -> None:
    """Store that it is no longer queued, which other gateways tell."""
    turn = run.state.turn
    with suppress(OctavoError):  # its file is busy: then they say that it is queued
        record = await service.records.get(turn.owner, turn.id)
        if record is not None and (kept := await decoded(service, record)).response["status"] == "queued":
            await _put_status(service, record, kept, "in_progress")


async def _put_status(service: Service, record: Record, kept: Kept, status: str) -> bool:
    """Change what a record says of its response, unless it says something else by now."""
    kept.response["status"] = status
    return await service.records.put(replace(record, body=msgspec.json.encode(kept)), replaces=record.body)


async def _beat(service: Service, run: DetachedRun) -> None:
    """Say again and again that the response is worked on, until it was cancelled or deleted elsewhere."""
    turn = run.state.turn
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        try:
            body = await service.records.live(turn.owner, turn.id)
        except OctavoError:  # its file is busy, or full: a later beat says it
            continue
        if body is None or msgspec.json.decode(body)["response"]["status"] == "cancelled":
            if run.task is not None:
                run.task.cancel()
            return


# ── from other requests ──


async def _stored(service: Service, owner: str, response_id: str) -> tuple[Record, Kept]:
    record = await service.records.get(owner, response_id)
    if record is None:
        raise not_found(response_id)
    return record, await decoded(service, record)


async def current(service: Service, owner: str, response_id: str) -> dict[str, Any]:
    """A response as it is now.

    Raises:
        NotKept: there is none of this caller.
    """
    record, kept = await _stored(service, owner, response_id)
    run = service.detached.find(owner, response_id)
    if run is not None and not run.ended:
        if kept.response["status"] == "cancelled":  # at another gateway
            await service.detached.cancel(run)
        return dict(run.state.now())
    if kept.response["status"] in RUNNING and service.records.clock() - record.alive > DEAD_SECONDS:
        error = {"code": "server_error", "message": "the server that ran it has ended", "param": None}
        kept.response |= {"status": "failed", "error": error}
    return kept.response


async def follow(service: Service, owner: str, response_id: str, after: int) -> Streamed:
    """The events of a response from a sequence number on.

    Raises:
        BadRequest: its events are not kept here.
    """
    run = service.detached.find(owner, response_id)
    if run is None or not run.logs or run.lost:
        await current(service, owner, response_id)
        raise BadRequest(
            "only responses that were created with background and stream can be streamed again, for a while, and by "
            "the gateway that runs them: fetch it without stream",
            "stream",
        )
    return Streamed(FRAMING.media_type, _followed(run, after))


async def cancel(service: Service, owner: str, response_id: str) -> dict[str, Any]:
    """Cancel a response that runs in the background; returns it as it is then. One that has ended stays as it is.

    Raises:
        BadRequest: it does not run in the background; NotKept: there is none of this caller.
    """
    found = await current(service, owner, response_id)
    if not found["background"]:
        raise BadRequest("only responses that were created with background: true can be cancelled", "response_id")
    if found["status"] not in RUNNING:
        return found
    run = service.detached.find(owner, response_id)
    if run is not None:
        await service.detached.cancel(run)
        return dict(run.state.now())
    while True:  # until nothing changes it meanwhile: it begins once, and ends once
        record, kept = await _stored(service, owner, response_id)
        if kept.response["status"] not in RUNNING or await _put_status(service, record, kept, "cancelled"):
            return kept.response


async def delete(service: Service, owner: str, response_id: str) -> None:
    """Delete a response; one that runs ends.

    Raises:
        NotKept: there is none of this caller.
    """
    run = service.detached.find(owner, response_id)
    if run is not None:
        await service.detached.cancel(run)
        service.detached.drop(response_id)
    if not await service.records.delete(owner, response_id):
        raise not_found(response_id)
