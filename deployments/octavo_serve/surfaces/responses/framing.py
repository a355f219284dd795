"""Streams of /v1/responses: server-sent events named by their type, and [DONE] at the end, as Open Responses has it."""

from __future__ import annotations

from typing import Any

from octavo_serve.api.surface import Framing, named_frame


def _describe(event: Any, error: Any) -> dict[str, Any]:
    chunk = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [event, error]}}
    return {
        "type": "object",
        "description": "With `stream: true`, server-sent events such as this, each named by its type; the last one has "
        "no name, and [DONE] as its data.",
        "properties": {
            "event": {"type": "string"},
            "data": {"type": "string", "anyOf": [{"const": "[DONE]"}, chunk]},
        },
        "required": ["data"],
    }


FRAMING = Framing("text/event-stream", named_frame, b"data: [DONE]\n\n", _describe)
