"""vLLM's /classify and /pooling: what a model's head says of texts, and what the engine pooled of them."""

from __future__ import annotations

from typing import Any

from octavo.errors import BadRequest
from octavo.pooled import check_dimensions, check_task, probabilities, vector
from octavo.pooling import Task
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.pooling import Pooled, accepted, pooled
from octavo_serve.api.service import Service
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.scoring.schemas import (
    Classification,
    Classifications,
    ClassifyRequest,
    PooledText,
    PooledTexts,
    PoolingRequest,
)
from octavo_serve.surfaces.vectors.texts import named, texts_of
from octavo_serve.surfaces.vectors.writing import as_list, written


async def classify(service: Service, call: Call) -> Listing:
    """The classes of a body's texts.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: ClassifyRequest = call.body
    found = await _pooled(service, call, "classify", "classify")
    info = found.info.pooling

    def entry(number: int) -> Classification:
        values = probabilities(found.values[number], info, activation=_activation(body))
        label = label_of(info.labels, int(values.argmax()))
        return {"index": number, "label": label, "probs": values.tolist(), "num_classes": len(values)}

    return as_list(found, len(found.values), entry, 8 + len(info.labels))


async def pooling(service: Service, call: Call) -> Listing:
    """What the engine pooled of a body's texts.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    body: PoolingRequest = call.body
    if body.task not in (None, "embed", "classify"):
        raise BadRequest(f'task must be "embed" or "classify", got {body.task!r:.80}: no other is done here', "task")
    found = await _pooled(service, call, "pool", body.task)
    info, task = found.info.pooling, _task(body.task, found.info.tasks)
    activation = body.normalize if body.normalize is not None else _activation(body)

    def entry(number: int) -> PooledText:
        raw = found.values[number]
        if task == "embed":
            values = vector(raw, info, body.dimensions, normalise=activation)
        else:
            values = probabilities(raw, info, activation=activation)
        return {"index": number, "object": "pooling", "data": written(values, body.encoding_format)}

    return as_list(found, len(found.values), entry, body.dimensions or info.dimensions or len(info.labels))


async def _pooled(service: Service, call: Call, kind: str, task: str | None) -> Pooled:
    body: ClassifyRequest = call.body
    texts = texts_of(body.input, "input")
    asking = named(body.asking(kind, "classify" if task == "classify" else "embeddings", "input"), texts, body.input)
    async with accepted(service, call.admit(asking), texts) as ready:
        wanted = _task(task, ready.info.tasks)
        check_task(wanted, ready.info.tasks, ready.model.name)
        if isinstance(body, PoolingRequest) and wanted == "embed":
            check_dimensions(body.dimensions, ready.info.pooling)
        encoded = await ready.encoded(texts)
    return await pooled(ready, encoded, wanted)


def _task(asked: str | None, tasks: Any) -> Task:
    """What is done for a request that says nothing: the head's task where the model has one."""
    if asked is None:
        return "classify" if "classify" in tasks else "embed"
    return "classify" if asked == "classify" else "embed"


def _activation(body: ClassifyRequest) -> bool | None:
    return body.use_activation if body.activation is None else body.activation


def label_of(labels: tuple[str, ...], number: int) -> str | None:
    """A class's name, if the checkpoint has one."""
    return labels[number] if number < len(labels) else None


CLASSIFY = Operation(
    method="POST",
    path="/classify",
    summary="vLLM: the classes of texts",
    answers=Classifications,
    run=classify,
    errors=ERRORS,
    body=ClassifyRequest,
    many=True,
)
POOLING = Operation(
    method="POST",
    path="/pooling",
    summary="vLLM: vectors, or what a head says, of texts",
    answers=PooledTexts,
    run=pooling,
    errors=ERRORS,
    body=PoolingRequest,
    many=True,
)
OPERATIONS = (CLASSIFY, POOLING)
