"""Contents as the text that a model reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo_serve.surfaces.decisions.schemas import JsonPart, RefusalPart

MAX_JSON_LEVELS = 32
"""Containers within each other, as OpenAI's."""
MAX_JSON_VALUES = 10_000
"""Values of one JSON part, as OpenAI's."""
MAX_JSON_BYTES = 2**18
"""Bytes of one JSON part as compact UTF-8, as OpenAI's."""


def text_of(content: Any, param: str) -> str:
    """The text of a content: a string, or parts, which are joined by newlines.

    Args:
        param: the field that holds it.

    Raises:
        BadRequest: a JSON part exceeds a bound.
    """
    return content if isinstance(content, str) else "\n".join(_part(part, param) for part in content)


def json_text(value: Any, param: str) -> str:
    """Compact JSON; a string is written as it is.

    Raises:
        BadRequest: it exceeds a bound, or holds a number that JSON does not have.
    """
    if isinstance(value, str):
        return value
    _check_size(value, param)
    try:
        encoded = msgspec.json.encode(value)
    except (ValueError, TypeError, OverflowError) as error:  # half a surrogate pair, for one
        raise BadRequest(f"{param} cannot be written as JSON: {error}", param) from None
    if len(encoded) > MAX_JSON_BYTES:
        raise BadRequest(f"{param} has {len(encoded)} bytes of JSON; at most {MAX_JSON_BYTES} are read", param)
    return encoded.decode()


def _part(part: Any, param: str) -> str:
    if isinstance(part, JsonPart):
        return json_text(part.data, param)
    if isinstance(part, RefusalPart):
        return part.refusal
    text: str = part.text
    return text


def _check_size(value: Any, param: str) -> None:
    """Level by level: depth costs nothing."""
    level, found = [value], 1
    for _ in range(MAX_JSON_LEVELS + 1):
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _inside(outer)]
        found += len(level)
        if found > MAX_JSON_VALUES:
            raise BadRequest(f"{param} holds more than {MAX_JSON_VALUES} values of JSON: send fewer", param)
        if not level:
            return
    raise BadRequest(f"{param} holds JSON nested deeper than {MAX_JSON_LEVELS} levels", param)


def _inside(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
