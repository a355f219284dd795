"""Values as HTTP responses in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response


def to_json(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return msgspec.json.encode(value)


def json_reply(value: Mapping[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response that holds `value`."""
    return Response(to_json(value), status, headers, media_type="application/json")
