"""OpenAI's responses."""

from __future__ import annotations

from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.openai.framing import to_json_in_slices
from octavo_serve.surfaces.responses.asking import ask
from octavo_serve.surfaces.responses.background import detach
from octavo_serve.surfaces.responses.errors import ERRORS
from octavo_serve.surfaces.responses.framing import FRAMING
from octavo_serve.surfaces.responses.recalling import recall
from octavo_serve.surfaces.responses.schemas import Response, ResponseEvent, ResponsesRequest
from octavo_serve.surfaces.responses.writer import ResponseWriter

RESPONSES = Surface(
    path="/v1/responses",
    summary="Answer items with items",
    body=ResponsesRequest,
    answers=Response,
    events=ResponseEvent,
    streams=lambda body: bool(body.stream),
    ask=ask,
    recall=recall,
    detach=detach,
    writer=ResponseWriter,
    errors=ERRORS,
    framing=FRAMING,
    large_json=to_json_in_slices,
)
