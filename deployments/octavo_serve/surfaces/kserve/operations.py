"""What KServe's protocol answers beside inference: health, and what the server and its models are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from octavo import __version__
from octavo.errors import ModelNotReady
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.kserve.errors import ERRORS
from octavo_serve.surfaces.kserve.schemas import (
    INPUTS,
    OUTPUTS,
    Config,
    Configured,
    Described,
    Live,
    Model,
    ModelReady,
    Ready,
    Server,
)
from octavo_serve.surfaces.kserve.surface import PATHS, model_of
from octavo_serve.surfaces.kserve.writer import VERSION

EXTENSIONS = ["binary_tensor_data", "generate", "model_configuration"]
_TYPES = {"BYTES": "TYPE_STRING", "BOOL": "TYPE_BOOL", "FP32": "TYPE_FP32", "UINT32": "TYPE_UINT32"}
"""KServe's datatypes in Triton's configurations."""


async def live(service: Service, call: Call) -> Live:
    """That the server answers."""
    return {"live": True}


async def ready(service: Service, call: Call) -> Ready:
    """That a model can answer.

    Raises:
        ModelNotReady: none can.
    """
    if not service.models.can_answer:
        raise ModelNotReady("no model of this server can answer now")
    return {"ready": True}


async def server(service: Service, call: Call) -> Server:
    """What the server is."""
    return {"name": "octavo", "version": __version__, "extensions": EXTENSIONS}


async def model_ready(service: Service, call: Call) -> ModelReady:
    """That a model can answer.

    Raises:
        UnknownModel, ModelNotReady.
    """
    name = model_of(call.path)
    await service.models.find(name).served(0.0, service.models.explain)
    return {"name": name, "ready": True}


async def model(service: Service, call: Call) -> Model:
    """A model's inputs and outputs.

    Raises:
        UnknownModel.
    """
    name = model_of(call.path)
    service.models.find(name)
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "octavo",
        "inputs": [_described(*one) for one in INPUTS.items()],
        "outputs": [_described(*one, size=-1) for one in OUTPUTS.items()],
    }


async def config(service: Service, call: Call) -> Config:
    """The same in the words of Triton's configurations.

    Raises:
        UnknownModel.
    """
    name = model_of(call.path)
    service.models.find(name)
    return {
        "name": name,
        "platform": "octavo",
        "backend": "octavo",
        "max_batch_size": 0,  # one text each: many are gathered behind the API
        "input": [{**_configured(*one, size=1), "optional": one[0] != "text_input"} for one in INPUTS.items()],
        "output": [_configured(*one, size=-1) for one in OUTPUTS.items()],
        "model_transaction_policy": {"decoupled": True},
    }


def _described(name: str, datatype: str, size: int = 1) -> Described:
    return {"name": name, "datatype": datatype, "shape": [size]}


def _configured(name: str, datatype: str, size: int) -> Configured:
    return {"name": name, "data_type": _TYPES[datatype], "dims": [size]}


def _get(path: str, summary: str, answers: type[Any], run: Callable[[Service, Call], Awaitable[Any]]) -> Operation:
    return Operation(method="GET", path=path, summary=f"KServe: {summary}", answers=answers, run=run, errors=ERRORS)


OPERATIONS = (
    _get("/v2", "what the server is", Server, server),
    _get("/v2/health/live", "200 when the server answers", Live, live),
    _get("/v2/health/ready", "200 when a model can answer", Ready, ready),
    *(_get(f"{path}/ready", "200 when the model can answer", ModelReady, model_ready) for path in PATHS),
    *(_get(f"{path}/config", "the same as Triton's configuration", Config, config) for path in PATHS),
    *(_get(path, "a model's inputs and outputs", Model, model) for path in PATHS),
)
