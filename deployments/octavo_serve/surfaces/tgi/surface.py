"""The API of Hugging Face's Text Generation Inference."""

from __future__ import annotations

from dataclasses import replace

from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.openai.framing import to_json_in_slices
from octavo_serve.surfaces.tgi.asking import ask, ask_compat, ask_stream
from octavo_serve.surfaces.tgi.errors import ERRORS
from octavo_serve.surfaces.tgi.schemas import CompatRequest, GenerateRequest, Generation, StreamEvent
from octavo_serve.surfaces.tgi.writer import CompatWriter, GenerateWriter

GENERATE: Surface[GenerateRequest, Generation, StreamEvent] = Surface(
    path="/generate",
    summary="TGI: continue a text",
    body=GenerateRequest,
    answers=Generation,
    events=None,
    streams=lambda body: False,
    ask=ask,
    writer=GenerateWriter,
    errors=ERRORS,
    large_json=to_json_in_slices,
)
GENERATE_STREAM: Surface[GenerateRequest, Generation, StreamEvent] = Surface(
    path="/generate_stream",
    summary="TGI: continue a text, token by token",
    body=GenerateRequest,
    answers=None,
    events=StreamEvent,
    streams=lambda body: True,
    ask=ask_stream,
    writer=GenerateWriter,
    errors=ERRORS,
    fails_in_stream=True,
)
COMPAT: Surface[CompatRequest, list[Generation], StreamEvent] = Surface(
    path="/",
    summary="TGI: continue a text, as clients of the Inference API ask for it",
    body=CompatRequest,
    answers=list[Generation],
    events=StreamEvent,
    streams=lambda body: bool(body.stream),
    ask=ask_compat,
    writer=CompatWriter,
    errors=ERRORS,
    fails_in_stream=True,
    large_json=lambda answer: b"[" + b",".join(map(to_json_in_slices, answer)) + b"]",
)
COMPAT_OF_MODEL = replace(
    COMPAT,
    path="/models/{model:path}",
    summary="The same of one of several models",
    model_of=lambda path: path["model"],
)
