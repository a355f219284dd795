"""OpenAI's streams: server-sent events without names, and [DONE] at the end."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from octavo_serve.api.surface import Framing, plain_frame, to_json

_SLICE = 64


def _describe(event: Any, error: Any) -> dict[str, Any]:
    chunk = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [event, error]}}
    return {
        "type": "object",
        "description": "With `stream: true`, server-sent events such as this: the data of each is a chunk, of the last "
        "one [DONE]. An error after the first event is an event, too.",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, chunk]}},
        "required": ["data"],
    }


FRAMING = Framing("text/event-stream", plain_frame, b"data: [DONE]\n\n", _describe)


def to_json_in_slices(value: Any) -> bytes:
    """A large answer or event as JSON, for use in a thread. It is encoded in slices, because msgspec holds the GIL
    until it has encoded a whole value, and into one buffer: to join 64 MB of slices holds it for 140 ms.

    An object is written field by field, and so are those in its list of choices; other lists are written 64 entries at
    a time.
    """
    out = BytesIO()
    _write(out, value)
    return out.getvalue()


def _write(out: BytesIO, value: Any, *, into: bool = True) -> None:
    if into and isinstance(value, Mapping):
        for number, (name, inner) in enumerate(value.items()):
            out.write((b"," if number else b"{") + to_json(name) + b":")
            if name == "choices":
                _write_choices(out, inner)
            else:
                _write(out, inner, into=name in ("logprobs", "details"))
        out.write(b"}" if value else b"{}")
    elif isinstance(value, list) and len(value) > _SLICE:
        for start in range(0, len(value), _SLICE):
            out.write((b"," if start else b"[") + to_json(value[start : start + _SLICE])[1:-1])
        out.write(b"]")
    else:
        out.write(to_json(value))


def _write_choices(out: BytesIO, choices: list[Any]) -> None:
    for number, choice in enumerate(choices):
        out.write(b"," if number else b"[")
        _write(out, choice)
    out.write(b"]" if choices else b"[]")
