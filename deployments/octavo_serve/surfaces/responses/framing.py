"""Streams of /v1/responses: server-sent events named by their type, and [DONE] at the end, as Open Responses has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_serve.api.surface import Framing


def _frame(event: Mapping[str, Any], json: bytes) -> bytes:
    return b"event: " + str(event.get("type", "error")).encode() + b"\ndata: " + json + b"\n\n"


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


FRAMING = Framing("text/event-stream", _frame, b"data: [DONE]\n\n", _describe)
