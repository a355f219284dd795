"""Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

from octavo_serve.api.surface import Framing, Surface, named_frame
from octavo_serve.surfaces.messages.answers import Event, Message
from octavo_serve.surfaces.messages.asking import ask
from octavo_serve.surfaces.messages.errors import ERRORS
from octavo_serve.surfaces.messages.schemas import MessagesRequest
from octavo_serve.surfaces.messages.writer import MessagesWriter


def _describe(event: Any, error: Any) -> dict[str, Any]:
    data = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [event, error]}}
    return {
        "type": "object",
        "description": "With `stream: true`, server-sent events such as this: each is named by the type of its data. "
        "An error after the first event is an event, too.",
        "properties": {"event": {"type": "string"}, "data": {"type": "string", **data}},
        "required": ["event", "data"],
    }


MESSAGES: Surface[MessagesRequest, Message, Event] = Surface(
    path="/v1/messages",
    summary="Answer messages",
    body=MessagesRequest,
    answers=Message,
    events=Event,  # type: ignore[arg-type]  # a union of types
    streams=lambda body: bool(body.stream),
    ask=ask,
    writer=MessagesWriter,
    errors=ERRORS,
    framing=Framing("text/event-stream", named_frame, b"", _describe),
)
