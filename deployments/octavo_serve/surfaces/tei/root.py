"""TEI's path of a model alone, which does what the model does: Hugging Face's clients send all they ask there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.listing import Listing
from octavo_serve.api.operation import Call, Operation
from octavo_serve.api.service import Service
from octavo_serve.surfaces.tei.errors import ERRORS
from octavo_serve.surfaces.tei.operations import EMBED, PREDICT, SIMILARITY
from octavo_serve.surfaces.tei.schemas import AnyRequest


async def root(service: Service, call: Call) -> Listing:
    """What the model of the path makes of a body.

    Raises:
        BadRequest, Overloaded, ModelNotReady, EngineDead.
    """
    fields: dict[str, Any] = call.body.model_dump(exclude_unset=True)
    if (name := call.path.get("model")) is not None:
        if fields.get("model") not in (None, name):
            raise BadRequest("the path names another model than the body", "model")
        fields["model"] = name
    classifies = service.models.find(fields.get("model"), tasks=("classify",)).may(("classify",))
    operation = SIMILARITY if isinstance(fields.get("inputs"), dict) else PREDICT if classifies else EMBED
    kind: Any = operation.body
    answer = await operation.run(service, replace(call, body=parse(kind, fields)))
    assert isinstance(answer, Listing)
    return answer


ROOT = Operation(
    method="POST",
    path="/",
    summary="TEI: what the model does",
    answers=list[Any],
    run=root,
    errors=ERRORS,
    body=AnyRequest,
    many=True,
)
