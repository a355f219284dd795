"""A model's sleep, by vLLM's names, and other weights in the place of those that are served."""

from __future__ import annotations

import time

from octavo.errors import BadRequest, ConfigError, ModelError
from octavo_serve.api.failures import Forbidden
from octavo_serve.api.folders import inside
from octavo_serve.api.model import Keeper
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.registry import ModelEntry
from octavo_serve.api.service import Service
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.weights.schemas import (
    Done,
    Replaced,
    Sleeping,
    SleepQuery,
    UpdateWeights,
    WakeQuery,
    WhichModel,
)

WITHHELD = (
    "models are put to sleep, woken up and changed by operators: it needs a key with operator: true, or disclose: true "
    "in the config of a server without keys"
)

_TAGS = {"weights", "kv_cache"}


async def sleep(service: Service, call: Call) -> Done:
    """Have a model give its memory back, once what was accepted is answered.

    Raises:
        BadRequest, Forbidden.
    """
    query: SleepQuery = call.query
    entry, keeper = _found(service, call, query.model)
    begun = time.monotonic()
    await keeper.sleep(query.level)
    return {"message": f"{entry.name} is asleep", "seconds": round(time.monotonic() - begun, 3)}


async def wake_up(service: Service, call: Call) -> Done:
    """Have it load its weights again.

    Raises:
        BadRequest, Forbidden.
    """
    query: WakeQuery = call.query
    if query.tags and set(query.tags) != _TAGS:
        raise BadRequest("tags must be weights and kv_cache, or left out: one alone answers nothing", "tags")
    entry, keeper = _found(service, call, query.model)
    begun = time.monotonic()
    await keeper.wake_up()
    return {"message": f"{entry.name} is awake", "seconds": round(time.monotonic() - begun, 3)}


async def is_sleeping(service: Service, call: Call) -> Sleeping:
    """Whether a model sleeps."""
    query: WhichModel = call.query
    level = service.models.find(query.model).asleep
    return {"is_sleeping": level > 0, "level": level}


async def update_weights(service: Service, call: Call) -> Replaced:
    """Serve other weights of the same architecture.

    Raises:
        BadRequest, Forbidden.
    """
    body: UpdateWeights = call.body
    entry, keeper = _found(service, call, body.model)
    if not entry.weight_folders:
        raise BadRequest("no weights may be replaced: a model's weight_folders in the config says where others lie")
    place = inside(body.path, entry.weight_folders, "path", "weight_folders")
    try:
        done = await keeper.update(place)
    except (ModelError, ConfigError) as error:
        raise BadRequest(f"the weights cannot be taken: {error}", "path") from None
    return {
        "message": f"{entry.name} has other weights now",
        "weights": done.weights,
        "shards": done.shards,
        "seconds": {"load": round(done.load_seconds, 3), "switch": round(done.switch_seconds, 3)},
    }


def _found(service: Service, call: Call, name: str | None) -> tuple[ModelEntry, Keeper]:
    if not call.rules.operates(call.caller):
        raise Forbidden(WITHHELD)
    entry = service.models.find(name)
    if entry.keeper is None:
        raise BadRequest(f"model {entry.name!r} is not kept by shards")
    return entry, entry.keeper


OPERATIONS = (
    Operation(
        method="POST",
        path="/sleep",
        summary="Have a model give its memory back until it is woken up",
        query=SleepQuery,
        answers=Done,
        run=sleep,
        errors=ERRORS,
        asks=False,
    ),
    Operation(
        method="POST",
        path="/wake_up",
        summary="Wake a model up",
        query=WakeQuery,
        answers=Done,
        run=wake_up,
        errors=ERRORS,
        asks=False,
    ),
    Operation(
        method="GET",
        path="/is_sleeping",
        summary="Whether a model is asleep",
        query=WhichModel,
        answers=Sleeping,
        run=is_sleeping,
        errors=ERRORS,
        asks=False,
    ),
    Operation(
        method="POST",
        path="/v1/update_weights",
        summary="Serve other weights, from one of the model's weight_folders, without a restart",
        body=UpdateWeights,
        answers=Replaced,
        run=update_weights,
        errors=ERRORS,
        asks=False,
    ),
)
