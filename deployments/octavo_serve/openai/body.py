"""From the bytes of a request to its fields: JSON, read within bounds.

What is refused costs one error; what is read costs at most as much as `BodyBounds` lets a body hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import msgspec

from octavo.errors import BadRequest
from octavo_serve.openai.bounds import LARGE_BODY, MAX_DEPTH, BodyBounds

_decode = msgspec.json.Decoder().decode
_FLAT = "prompt", "tokens"
"""Fields whose nesting their own type bounds."""
_NESTED = frozenset((dict, list))


def fields_of(body: bytes | Mapping[str, Any], bounds: BodyBounds) -> dict[str, Any]:
    """The fields of a JSON object, or of the same as a mapping.

    Raises:
        BadRequest: it is no JSON object, or holds or nests more than it may.
    """
    if not isinstance(body, bytes):
        fields = dict(body)
        _check_depth(fields, bounds)
        return fields
    if len(body) > 2 * bounds.structure and _structure(body) > bounds.structure:  # "[]," is the shortest
        raise BadRequest(f"the body holds more than {bounds.structure} brackets and keys; send fewer at once")
    fields = _decoded(body)
    if len(body) < LARGE_BODY and body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return fields
    _check_depth(fields, bounds)
    return fields


def _structure(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[") + body.count(b'":')


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        value = _decode(body)
    except msgspec.ValidationError:  # there is no type to fit: only a number can be wrong
        raise BadRequest("the body holds a number that is out of range") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest(_TOO_DEEP) from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


_TOO_DEEP = f"the body is nested deeper than {MAX_DEPTH} levels"


def _check_depth(fields: Mapping[str, Any], bounds: BodyBounds) -> None:
    """Level by level, so that neither depth nor, in a mapping, a cycle can cost much."""
    level = [value for name, value in fields.items() if name not in _FLAT and isinstance(value, (dict, list))]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        inner = chain.from_iterable(value.values() if isinstance(value, dict) else value for value in level)
        level = [value for value in inner if value.__class__ in _NESTED]
        if len(level) > bounds.structure:
            break
    raise BadRequest(_TOO_DEEP)
