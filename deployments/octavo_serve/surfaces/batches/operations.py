"""Batches: begin one, look at it, list yours, cancel one."""

from __future__ import annotations

from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.batches import store
from octavo_serve.api.batches.nouns import Batch, new_id
from octavo_serve.api.failures import NotKept
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.batches.files import OPERATIONS as FILES
from octavo_serve.surfaces.batches.files import page
from octavo_serve.surfaces.batches.schemas import (
    WINDOW_SECONDS,
    BatchBody,
    BatchList,
    BatchObject,
    BatchQuery,
    told_batch,
)
from octavo_serve.surfaces.openai.errors import ERRORS

PATH = "/v1/batches/{batch_id}"


async def _create(service: Service, call: Call) -> BatchObject:
    body: BatchBody = call.body
    batches = service.batches
    if batches.on and body.endpoint not in batches.paths:  # without a folder `on` says so
        served = ", ".join(sorted(batches.paths))
        raise BadRequest(f"endpoint is {body.endpoint!r:.80}; batches can be for {served}", "endpoint")
    now = int(batches.clock())
    facts: dict[str, Any] = {"metadata": body.metadata}
    if body.output_expires_after is not None:
        facts["output_ttl"] = body.output_expires_after.seconds
    batch = Batch(
        id=new_id("batch"),
        owner=call.caller.name,
        input=body.input_file_id,
        endpoint=body.endpoint,
        status="validating",
        created=now,
        expires=now + WINDOW_SECONDS,
        facts=facts,
    )
    await batches.run(store.add_batch, batch, batches.clock())
    batches.changed.set()
    return told_batch(batch, tells=call.tells)


async def _get(service: Service, call: Call) -> BatchObject:
    return _told(await service.batches.run(store.get_batch, call.caller.name, call.path["batch_id"]), call)


async def _cancel(service: Service, call: Call) -> BatchObject:
    batches, batch_id = service.batches, call.path["batch_id"]
    found = await batches.run(store.cancel_batch, call.caller.name, batch_id, int(batches.clock()))
    batches.changed.set()
    return _told(found, call)


def _told(batch: Batch | None, call: Call) -> BatchObject:
    if batch is None:
        raise NotKept(f"there is no batch {call.path['batch_id']!r:.80}", "batch_id")
    return told_batch(batch, tells=call.tells)


async def _list(service: Service, call: Call) -> BatchList:
    query: BatchQuery = call.query
    found = await service.batches.run(store.list_batches, call.caller.name, query.after, query.limit + 1)
    if found is None:
        raise BadRequest(f"after names {query.after!r:.80}, which is no batch", "after")
    listed: BatchList = page([told_batch(batch, tells=call.tells) for batch in found], query.limit)
    return listed


OPERATIONS = (
    *FILES,
    Operation(
        method="POST",
        path="/v1/batches",
        summary="Begin a batch",
        answers=BatchObject,
        run=_create,
        errors=ERRORS,
        body=BatchBody,
        asks=False,
    ),
    Operation(
        method="GET",
        path="/v1/batches",
        summary="Your batches",
        answers=BatchList,
        run=_list,
        errors=ERRORS,
        query=BatchQuery,
    ),
    Operation(method="GET", path=PATH, summary="A batch", answers=BatchObject, run=_get, errors=ERRORS),
    Operation(
        method="POST",
        path=f"{PATH}/cancel",
        summary="Cancel a batch",
        answers=BatchObject,
        run=_cancel,
        errors=ERRORS,
    ),
)
