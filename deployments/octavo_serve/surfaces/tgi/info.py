"""What TGI's /info says of a model."""

from __future__ import annotations

from octavo import __version__
from octavo.request import MAX_STOP
from octavo_serve.api.bounds import MAX_TEXTS
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.api.texts import longest
from octavo_serve.surfaces.tgi.errors import ERRORS
from octavo_serve.surfaces.tgi.schemas import Classes, Info, ModelType, OfModel, PoolingModelInfo
from octavo_serve.wire.messages import ModelInfo


async def info(service: Service, call: Call) -> Info | PoolingModelInfo:
    """A model and what it takes: TGI's words for one that writes text, and Text Embeddings Inference's for others.

    Raises:
        BadRequest, ModelNotReady, EngineDead.
    """
    model = await service.models.served(call.query.model, call.session)
    known = await model.client.describe()
    if "generate" not in known.tasks:
        return _without_text(model.name, known)
    context = known.max_model_len
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


def _without_text(name: str, known: ModelInfo) -> PoolingModelInfo:
    labels = known.pooling.labels
    classes: Classes = {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    kind: ModelType = {"embedding": {"pooling": known.pooling.method}}
    if "classify" in known.tasks:
        kind = {"reranker": classes} if len(labels) == 1 else {"classifier": classes}
    return {
        "model_id": name,
        "model_sha": None,
        "model_type": kind,
        "max_input_length": longest(known),
        "max_client_batch_size": MAX_TEXTS,
        "auto_truncate": False,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


INFO = Operation(
    method="GET",
    path="/info",
    summary="TGI and TEI: a model",
    query=OfModel,
    answers=Info | PoolingModelInfo,
    run=info,
    errors=ERRORS,
)
