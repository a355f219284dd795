"""OpenAI's text completions."""

from __future__ import annotations

from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.completions.asking import ask
from octavo_serve.surfaces.completions.schemas import Completion, CompletionRequest
from octavo_serve.surfaces.completions.writer import CompletionWriter
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.openai.framing import FRAMING, to_json_in_slices

COMPLETIONS = Surface(
    path="/v1/completions",
    summary="Continue one or many prompts",
    body=CompletionRequest,
    answers=Completion,
    events=Completion,
    streams=lambda body: bool(body.stream),
    ask=ask,
    writer=CompletionWriter,
    errors=ERRORS,
    framing=FRAMING,
    large_json=to_json_in_slices,
)
