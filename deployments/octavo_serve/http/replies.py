"""Values as HTTP responses in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response


def to_json(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return msgspec.json.encode(value)


_SLICE = 64


def to_json_in_slices(value: Any, *, into: bool = True) -> bytes:
    """The same for a large answer, in a thread: msgspec lets no other thread go on until it has written all of it.

    Args:
        into: objects, and those in the list of choices, are written field by field, other lists 64 entries at a time.
    """
    if into and isinstance(value, Mapping):
        return b"{" + b",".join(_field(name, inner) for name, inner in value.items()) + b"}"
    if isinstance(value, list) and len(value) > _SLICE:
        slices = (value[start : start + _SLICE] for start in range(0, len(value), _SLICE))
        return b"[" + b",".join(msgspec.json.encode(part)[1:-1] for part in slices) + b"]"
    return msgspec.json.encode(value)


def _field(name: str, value: Any) -> bytes:
    key = msgspec.json.encode(name) + b":"
    if name == "choices":
        return key + b"[" + b",".join(map(to_json_in_slices, value)) + b"]"
    return key + to_json_in_slices(value, into=name == "logprobs")


def json_reply(value: Mapping[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response that holds `value`."""
    return Response(to_json(value), status, headers, media_type="application/json")
