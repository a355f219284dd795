"""What TGI's /info says of a model."""

from __future__ import annotations

from octavo import __version__
from octavo.request import MAX_STOP
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.tgi.errors import ERRORS
from octavo_serve.surfaces.tgi.schemas import Info, OfModel


async def info(service: Service, call: Call) -> Info:
    """A model and what it takes.

    Raises:
        BadRequest, ModelNotReady, EngineDead.
    """
    model = await service.models.served(call.query.model, call.session)
    context = (await model.client.describe()).max_model_len
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_best_of": service.limits.max_n,
        "max_stop_sequences": MAX_STOP,
        "max_input_tokens": context - 1,
        "max_total_tokens": context,
        "max_client_batch_size": 1,
        "router": "octavo",
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


INFO = Operation(
    method="GET", path="/info", summary="TGI: a model", query=OfModel, answers=Info, run=info, errors=ERRORS
)
