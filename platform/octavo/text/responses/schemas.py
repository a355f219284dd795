"""What a tool's schema says of a value: which types it may have, and what each of them must be.

The parser needs it to read values that a form writes without types, the grammars to write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_FOLLOWED = 32
"""References that lead to one schema."""
_MOST = 64  # choices that are looked at


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema without a reference at its top: what a local `$ref` names, with the keywords beside it.

    Args:
        root: what references begin at.
    """
    for _ in range(MAX_FOLLOWED):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            return schema
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        found = _named(schema["$ref"], root)
        if not isinstance(found, Mapping):
            return beside
        schema = {**found, **beside}
    return {}


def _named(reference: str, root: Mapping[str, Any]) -> Any:
    if not reference.startswith("#"):
        return None
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        if not isinstance(found, Mapping):
            return None
        found = found.get(part.replace("~1", "/").replace("~0", "~"))
    return found


def choices(schema: Any, root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas of which a value fits one, each with one `type` or none, and references resolved at their tops.

    What stands beside `anyOf`, `oneOf` or an `allOf` of one goes into each choice. At most 64 are looked at.
    """
    found: list[dict[str, Any]] = []
    waiting = [schema]
    for _ in range(_MOST):
        if not waiting:
            break
        schema = resolved(waiting.pop(), root)
        if not isinstance(schema, Mapping):
            continue
        key = next((key for key in ("anyOf", "oneOf", "allOf") if _is_choice(schema, key)), None)
        if key is not None:
            beside = {name: value for name, value in schema.items() if name != key}
            inner = [resolved(part, root) for part in schema[key][:_MOST]]
            waiting += [{**beside, **part} for part in reversed(inner) if isinstance(part, Mapping)]
            continue
        kinds = schema.get("type")
        if isinstance(kinds, list) and kinds:
            found += [_only({**schema, "type": kind}) for kind in kinds[:_MOST] if isinstance(kind, str)]
        else:
            found += _inferred(schema) if kinds is None else [dict(schema)]
    return found


def _is_choice(schema: Mapping[str, Any], key: str) -> bool:
    inner = schema.get(key)
    return isinstance(inner, list) and (len(inner) == 1 if key == "allOf" else bool(inner))


def _inferred(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Types of a schema that names none, by its values or by its keywords."""
    values = (
        schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else None
    )
    if values is not None:
        kinds = dict.fromkeys(map(_kind, values))
        return [_only({**schema, "type": kind}) for kind in kinds]
    for key, kind in (("properties", "object"), ("items", "array"), ("pattern", "string")):
        if key in schema:
            return [{**schema, "type": kind}]
    return [dict(schema)]


def _only(schema: dict[str, Any]) -> dict[str, Any]:
    """Without those of its values that have another type."""
    if isinstance(schema.get("enum"), list):
        schema["enum"] = [value for value in schema["enum"] if fits(value, schema["type"])]
    return schema


def _kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def fits(value: Any, kind: str) -> bool:
    """Whether a value has one of JSON schema's types."""
    if isinstance(value, bool):
        return kind == "boolean"
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,), "integer": (int,), "number": (int, float), "object": (dict,), "array": (list,),
        "null": (type(None),),
    }  # fmt: skip
    return isinstance(value, kinds.get(kind, ()))
