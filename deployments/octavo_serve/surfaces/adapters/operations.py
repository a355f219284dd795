"""Adapters that are loaded and unloaded while a server runs, by vLLM's names."""

from __future__ import annotations

from octavo_serve.api.failures import Forbidden
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.adapters.schemas import Done, LoadAdapter, UnloadAdapter
from octavo_serve.surfaces.openai.errors import ERRORS

WITHHELD = (
    "adapters are loaded and unloaded by operators: it needs a key with operator: true, or disclose: true in the "
    "config of a server without keys"
)


async def load(service: Service, call: Call) -> Done:
    """Serve an adapter from a folder that the config names.

    Raises:
        BadRequest, Forbidden.
    """
    _check(call)
    body: LoadAdapter = call.body
    models = service.models
    taken = {*models.entries, *models.aliases}
    await models.adapters.load(body.lora_name, body.lora_path, body.model, taken, again=body.load_inplace)
    return {"message": f"Success: LoRA adapter '{body.lora_name}' added successfully."}


async def unload(service: Service, call: Call) -> Done:
    """Serve an adapter no more.

    Raises:
        UnknownModel, Forbidden.
    """
    _check(call)
    body: UnloadAdapter = call.body
    service.models.adapters.unload(body.lora_name)
    return {"message": f"Success: LoRA adapter '{body.lora_name}' removed successfully."}


def _check(call: Call) -> None:
    if not call.rules.operates(call.caller):
        raise Forbidden(WITHHELD)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/load_lora_adapter",
        summary="Serve a LoRA adapter from one of the model's lora_folders",
        body=LoadAdapter,
        answers=Done,
        run=load,
        errors=ERRORS,
        asks=False,
    ),
    Operation(
        method="POST",
        path="/v1/unload_lora_adapter",
        summary="Serve a LoRA adapter no more",
        body=UnloadAdapter,
        answers=Done,
        run=unload,
        errors=ERRORS,
        asks=False,
    ),
)
