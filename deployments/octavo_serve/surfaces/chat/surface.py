"""OpenAI's chat completions."""

from __future__ import annotations

from octavo_serve.api.surface import Surface
from octavo_serve.surfaces.chat.asking import ask
from octavo_serve.surfaces.chat.schemas import ChatChunk, ChatCompletion, ChatRequest
from octavo_serve.surfaces.chat.writer import ChatWriter
from octavo_serve.surfaces.openai.errors import ERRORS
from octavo_serve.surfaces.openai.framing import FRAMING, to_json_in_slices

CHAT = Surface(
    path="/v1/chat/completions",
    summary="Answer a chat",
    body=ChatRequest,
    answers=ChatCompletion,
    events=ChatChunk,
    streams=lambda body: bool(body.stream),
    ask=ask,
    writer=ChatWriter,
    errors=ERRORS,
    framing=FRAMING,
    large_json=to_json_in_slices,
)
