"""OpenAI's streams: server-sent events without names, and [DONE] at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_serve.api.surface import Framing, to_json

_SLICE = 64


def _frame(event: Mapping[str, Any], json: bytes) -> bytes:
    return b"data: " + json + b"\n\n"


def _describe(event: Any, error: Any) -> dict[str, Any]:
    chunk = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [event, error]}}
    return {
        "type": "object",
        "description": "With `stream: true`, server-sent events such as this: the data of each is a chunk, of the last "
        "one [DONE]. An error after the first event is an event, too.",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, chunk]}},
        "required": ["data"],
    }


FRAMING = Framing("text/event-stream", _frame, b"data: [DONE]\n\n", _describe)


def to_json_in_slices(value: Any, *, into: bool = True) -> bytes:
    """A large answer or event as JSON, for use in a thread. It is encoded in slices, because msgspec holds the GIL
    until it has encoded a whole value.

    Args:
        into: write an object, and the objects in its list of choices, field by field; other lists are written 64
            entries at a time.
    """
    if into and isinstance(value, Mapping):
        return b"{" + b",".join(_field(name, inner) for name, inner in value.items()) + b"}"
    if isinstance(value, list) and len(value) > _SLICE:
        slices = (value[start : start + _SLICE] for start in range(0, len(value), _SLICE))
        return b"[" + b",".join(to_json(part)[1:-1] for part in slices) + b"]"
    return to_json(value)


def _field(name: str, value: Any) -> bytes:
    key = to_json(name) + b":"
    if name == "choices":
        return key + b"[" + b",".join(map(to_json_in_slices, value)) + b"]"
    return key + to_json_in_slices(value, into=name == "logprobs")
